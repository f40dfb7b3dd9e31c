package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
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

func names(t *testing.T, o Options) (all []string) {
	t.Helper()
	layouts, err := o.layouts()
	if err != nil {
		t.Error(err)
	}
	for _, l := range layouts {
		all = append(all, l.name)
	}
	return all
}

func TestLayouts_backends(t *testing.T) {
	o := Options{Name: "x", Overlays: []string{"direct", "flannel-vxlan", "vxlan+normal"}, Backends: []string{"nftables", "iptables"}}
	want := []string{"direct+nftables", "direct+iptables", "flannel-vxlan", "vxlan+normal+nftables", "vxlan+normal+iptables"}
	if got := names(t, o); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if labs := o.Names(); len(labs) != 5 || labs[0] != "x-1" || labs[4] != "x-5" {
		t.Errorf("labs %q", labs)
	}
	o.Backends = []string{"iptables"}
	if got, err := o.layouts(); err != nil || got[0].name != "direct" || got[0].backend != "iptables" {
		t.Errorf("one backend: %+v, %v", got, err)
	}
	for _, bad := range [][]string{{"auto"}, {"ipvs", "iptables"}, {"iptables", "iptables"}} {
		o.Backends = bad
		if got, err := o.layouts(); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func TestLayouts_services(t *testing.T) {
	o := Options{Name: "x", Overlays: []string{"direct", "flannel-vxlan"}, Backends: []string{"nftables", "iptables"}, Services: []int{0, 500}}
	want := []string{"direct+nftables+0svc", "direct+nftables+500svc", "direct+iptables+0svc", "direct+iptables+500svc", "flannel-vxlan"}
	if got := names(t, o); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	o.Backends, o.Services = nil, []int{500}
	if got, err := o.layouts(); err != nil || got[0].name != "direct" || got[0].services != 500 || got[1].services != 0 {
		t.Errorf("one number: %+v, %v", got, err)
	}
	for _, bad := range [][]int{{-1}, {5, 5}, {maxServices + 1}} {
		o.Services = bad
		if got, err := o.layouts(); err == nil {
			t.Errorf("%v: %+v, want an error", bad, got)
		}
	}
}

// Few Services and many side by side, in one run.
func TestRun_services(t *testing.T) {
	needProgram(t)
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "lab", "--name", "rig", "perf", "--overlay", "direct", "--services", "0,300",
		"--tests", "tcp_crr", "--rounds", "2", "--duration", "100ms", "--json", "-").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	var e perf.Evaluation
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	for _, c := range e.Cells {
		read := c.Path != "pod-service-pod/direct+300svc" || c.Round == 1 // of so many, once
		if strings.HasPrefix(c.Path, perf.PodServicePod) && (c.Moved[perf.Connections] > 0) != read {
			t.Errorf("%s in round %d: %v", c.Path, c.Round, c.Moved)
		}
	}
	i := slices.IndexFunc(e.Notes, func(n perf.Note) bool { return n.Name == "Services" })
	if i < 0 {
		t.Fatalf("%+v", e.Notes)
	}
	var few, many int
	if n, err := fmt.Sscanf(e.Notes[i].Value, "%d, %d", &few, &many); n != 2 || few < 1 || many != few+300 {
		t.Errorf("%q: %v", e.Notes[i].Value, err)
	}
	var parts []string
	for _, s := range e.Steps {
		parts = append(parts, s.Part)
	}
	if want := []string{"pod network", "Service translation, 0 others", "Service translation, 300 others"}; !slices.Equal(parts, want) {
		t.Errorf("%q, want %q", parts, want)
	}
}

// The backends side by side: each translates the connections of its own lab, by its own rules' counters,
// and the cost of each is a part of its own.
func TestRun_backends(t *testing.T) {
	needProgram(t)
	if _, err := exec.LookPath("iptables-save"); err != nil {
		t.Skipf("needs iptables: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "lab", "--name", "rig", "perf", "--overlay", "direct", "--proxy-backend", "nftables,iptables",
		"--tests", "tcp_lat,udp_lat", "--rounds", "1", "--duration", "100ms", "--json", "-").Output()
	if err != nil {
		t.Fatalf("%v: %s", err, err.(*exec.ExitError).Stderr)
	}
	var e perf.Evaluation
	if err := json.Unmarshal(out, &e); err != nil {
		t.Fatal(err)
	}
	seen := map[string]uint64{}
	for _, c := range e.Cells {
		seen[c.Path] += c.Moved[perf.Connections]
	}
	for path, through := range map[string]bool{
		"node-node": false, "pod-pod/direct+nftables": false, "pod-service-pod/direct+nftables": true,
		"pod-pod/direct+iptables": false, "pod-service-pod/direct+iptables": true,
	} {
		if n, measured := seen[path]; !measured || (n > 0) != through {
			t.Errorf("%s: measured %v, %d connections through the Service", path, measured, n)
		}
	}
	if !slices.Contains(e.Notes, perf.Note{Name: "Service proxy", Value: "nftables, iptables"}) {
		t.Errorf("%+v", e.Notes)
	}
	var parts []string
	for _, s := range e.Steps {
		if s.Test == qperf.TCPLatency {
			parts = append(parts, s.Part)
		}
	}
	if want := []string{"pod network", "Service translation, nftables", "Service translation, iptables"}; !slices.Equal(parts, want) {
		t.Errorf("%q, want %q", parts, want)
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
		seen[c.Path] += c.Moved[perf.Shortened]
		if lb := c.Path == "pod-service-pod/direct+fast+lb"; lb != (c.Moved[perf.AtSockets] > 0) {
			t.Errorf("%s: %d connections translated at the socket", c.Path, c.Moved[perf.AtSockets])
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
