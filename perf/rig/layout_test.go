package rig

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/perf"
)

func TestParseLayout(t *testing.T) {
	for name, want := range map[string]layout{
		"vxlan":           {overlay: overlay.VXLAN},
		"auto+normal":     {overlay: overlay.Auto, fastPath: fastpath.Off, socketLB: fastpath.Off},
		"direct+fast":     {overlay: overlay.Direct, fastPath: fastpath.On, socketLB: fastpath.Off},
		"vxlan+fast+lb":   {overlay: overlay.VXLAN, fastPath: fastpath.On, socketLB: fastpath.On},
		"flannel-vxlan":   {overlay: overlay.Direct, fastPath: fastpath.Off, socketLB: fastpath.Off, flannel: "vxlan"},
		"flannel-host-gw": {overlay: overlay.Direct, fastPath: fastpath.Off, socketLB: fastpath.Off, flannel: "host-gw"},
	} {
		want.name = name
		if got, err := parseLayout(name); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "moon", "vxlan+", "vxlan+quick", "moon+fast", "flannel", "flannel-udp", "flannel-vxlan+fast", "vxlan+lb", "vxlan+normal+lb"} {
		if got, err := parseLayout(name); err == nil {
			t.Errorf("%q: %+v, want an error", name, got)
		}
	}
}

// Every layout carries traffic, and the proofs hold: the fast path's counters
// move where it was asked for, and stand still where it was forbidden.
func TestLayouts(t *testing.T) {
	needProgram(t)
	layouts := "vxlan+normal,flannel-vxlan,flannel-host-gw"
	if os.Geteuid() == 0 {
		layouts += ",vxlan+fast,direct+fast+lb"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "lab", "--name", "rig", "perf", "--overlay", layouts,
		"--tests", "tcp_lat", "--rounds", "1", "--duration", "100ms", "--json", "-").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	var e perf.Evaluation
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	seen := map[string]uint64{}
	for _, c := range e.Cells {
		seen[c.Path] += c.Moved[shortened]
		if lb := c.Path == "pod-service-pod/direct+fast+lb"; lb != (c.Moved[atSockets] > 0) {
			t.Errorf("%s: %d connections translated at the socket", c.Path, c.Moved[atSockets])
		}
	}
	for _, path := range []string{"node-node", "pod-pod/vxlan+normal", "pod-pod/flannel-vxlan", "pod-pod/flannel-host-gw"} {
		if n, measured := seen[path]; !measured || n != 0 {
			t.Errorf("%s: measured %v, %d packets on the fast path", path, measured, n)
		}
	}
	for _, path := range []string{"pod-pod/vxlan+fast", "pod-pod/direct+fast+lb", "pod-service-pod/direct+fast+lb"} {
		if os.Geteuid() == 0 && seen[path] == 0 {
			t.Errorf("%s: no packet on the fast path", path)
		}
	}
}
