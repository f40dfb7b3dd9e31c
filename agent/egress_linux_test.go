package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// TestLeaving_follows: the rules follow the nodes, a set that is not wanted any more goes, and while the own node's object is
// away all stays.
func TestLeaving_follows(t *testing.T) {
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := cluster.NewBuilder()
	l := newLeaving(egress.Config{On: true})
	apply := func() string {
		t.Helper()
		if err := l.apply(conn, plan.CompileAll(plan.Input{Node: "n1", Overlay: overlay.Config{Mode: overlay.VXLAN, Cluster: "c"}, Snapshot: b.Publish()})); err != nil {
			t.Fatal(err)
		}
		return nettest.Run(t, "nft", "list", "table", "ip", egress.Name)
	}
	node := &cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}}
	b.SetNode(node)
	if got := apply(); !strings.Contains(got, "10.244.1.0") || !strings.Contains(got, "pods-24") {
		t.Fatal(got)
	}
	other := *node
	other.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/25")}
	b.SetNode(&other)
	want := apply()
	if strings.Contains(want, "pods-24") || !strings.Contains(want, "pods-25") {
		t.Errorf("another pod CIDR: %s", want)
	}
	b.DeleteNode(other.Name)
	if got := apply(); got != want {
		t.Errorf("without the node's object: %s\nwant %s", got, want)
	}
}
