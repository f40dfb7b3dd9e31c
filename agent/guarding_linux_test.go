package agent

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// TestGuarding_counts: what was dropped stays counted when the rules are written anew.
func TestGuarding_counts(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "ip", "link", "set", "lo", "up")
	nettest.Run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := cluster.NewBuilder()
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}})
	p := plan.CompileAll(plan.Input{Node: "n1", Overlay: overlay.Config{Mode: overlay.VXLAN, Cluster: "c"}, Snapshot: b.Publish()})
	g := &guarding{}
	for i := range uint64(4) {
		if err := g.apply(conn, p); err != nil {
			t.Fatal(err)
		}
		if counts, err := g.counts(conn); err != nil || counts[guard.Stranger] != i {
			t.Fatalf("%v %v, want %d", counts, err, i)
		}
		// VXLAN from an address that is no node's.
		nettest.Run(t, "bash", "-c", "echo x > /dev/udp/192.0.2.1/8472")
		if counts, err := g.counts(conn); err != nil || counts[guard.Stranger] != i+1 {
			t.Fatalf("%v %v, want %d", counts, err, i+1)
		}
		g.doubt()
	}
}
