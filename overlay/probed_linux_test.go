package overlay_test

import (
	"strings"
	"testing"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay"
)

// TestKernel_probed has no way trusted, then all of them, then none again: packets
// flow all the time, by VXLAN or directly, and the probe address answers by the
// direct way before that is trusted.
func TestKernel_probed(t *testing.T) {
	w := newWorld(t, overlay.Auto, "46")
	all := &overlay.Probed{Direct: map[overlay.Way]bool{}}
	for name := range w.api {
		all.Direct[overlay.Way{Node: name}], all.Direct[overlay.Way{Node: name, V6: true}] = true, true
	}
	for i, probed := range []*overlay.Probed{{}, all, {SoftChecksum: true}} {
		w.probed = probed
		w.apply(t)
		w.talk(t)
		nettest.Do(t, w.nodes["n1"].ns, func() {
			for _, c := range []struct{ pod, probe, own string }{{"10.244.2.5", "10.244.2.0", "10.244.1.0"}, {"fd00:244:2::5", "fd00:244:2::", "fd00:244:1::"}} {
				dev := "pl-vxlan"
				if i == 1 {
					dev = "eth0"
				}
				if out := run(t, "ip route get %s", c.pod); !strings.Contains(out, "dev "+dev) {
					t.Errorf("%d: %s, want %s", i, out, dev)
				}
				if out := run(t, "ip route get %s from %s", c.probe, c.own); !strings.Contains(out, "dev eth0") {
					t.Errorf("%d: %s, want eth0", i, out)
				}
				run(t, "ping -c1 -W2 -I %s %s", c.own, c.probe)
			}
			if out := run(t, "ethtool -k pl-vxlan"); strings.Contains(out, "tx-checksumming: off") != probed.SoftChecksum {
				t.Errorf("%d: %s", i, out)
			}
			have, err := w.nodes["n1"].h.Read()
			if err != nil {
				t.Fatal(err)
			}
			if got := overlay.TrustKernel(w.input(t, w.nodes["n1"]), have); got.Direct[overlay.Way{Node: "n2"}] != (i == 1) || got.SoftChecksum != probed.SoftChecksum {
				t.Errorf("%d: a new agent trusts %+v", i, got)
			}
		})
		if t.Failed() {
			t.FailNow()
		}
	}
}
