package explain_test

import (
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/overlay"
)

// TestExplain_guard: what a node's guard drops is said where it is dropped, and why.
func TestExplain_guard(t *testing.T) {
	for _, tc := range []struct {
		name, from, to, enter string
		protocol              cluster.Protocol
		node, why             string // "": it is delivered
	}{
		{"a pod to its node's probes", "client", "192.168.200.1:8473", "", cluster.UDP, "n1", guard.FromPod},
		{"a pod to its node's probes, by its gateway", "client", "10.244.1.1:8473", "", cluster.UDP, "n1", guard.FromPod},
		{"a pod to another node's probes", "client", "192.168.200.2:8473", "", cluster.UDP, "n1", guard.Forwarded},
		{"a pod to another node's probes, by its gateway", "client", "10.244.2.1:8473", "", cluster.UDP, "n1", guard.Forwarded},
		{"a pod to another node's VTEP", "client", "192.168.200.2:8472", "", cluster.UDP, "n1", guard.Forwarded},
		{"a node to another's probes", "node/n1", "192.168.200.2:8473", "", cluster.UDP, "n2", ""},
		{"a stranger to a VTEP", "203.0.113.9", "192.168.200.2:8472", "", cluster.UDP, "n2", guard.Stranger},
		{"TCP to the same port", "client", "192.168.200.2:8473", "", cluster.TCP, "n2", ""},
		{"UDP to a pod's port of that number", "client", "10.244.2.2:8472", "", cluster.UDP, "n2", ""},
		{"from outside by another node to a pod", "203.0.113.9", "10.244.2.2:80", "n1", cluster.TCP, "n2", guard.Inner},
	} {
		a, err := explain.Explain(world(t, overlay.VXLAN, web), explain.Access{From: tc.from, To: tc.to, Protocol: tc.protocol, Enter: tc.enter})
		if err != nil {
			t.Fatal(err)
		}
		if tc.why == "" {
			if a.Verdict != explain.Delivered {
				t.Errorf("%s: %s, %s", tc.name, a.Verdict, a.Reason)
			}
			continue
		}
		hops := a.Paths[0].Forward
		last := hops[len(hops)-1]
		if a.Verdict != explain.Dropped || !strings.HasSuffix(a.Reason, tc.why) || last.Node != tc.node || last.Stage != explain.StageGuard || len(last.Objects) != 1 {
			t.Errorf("%s: %s (%s), last %+v; want it dropped at %s: %s", tc.name, a.Verdict, a.Reason, last, tc.node, tc.why)
		}
	}
}
