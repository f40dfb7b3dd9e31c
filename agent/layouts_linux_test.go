package agent

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/hostport"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// TestLayouts starts on tables that another version has left: with a chain that has
// another priority, a set with another key, chains and sets of other names. They become
// what an agent makes where there was nothing, by one transaction for each, and a table that is
// right stays, with its chains.
func TestLayouts(t *testing.T) {
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b := cluster.NewBuilder()
	for _, d := range []string{"1", "2"} {
		b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n" + d}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2." + d)},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244." + d + ".0/24")}})
	}
	p := plan.CompileAll(plan.Input{Node: "n1", Overlay: overlay.Config{Mode: overlay.VXLAN, Cluster: "c"}, Snapshot: b.Publish()})
	pod := hostPortPod("10.244.1.2", "fd00:244::2")
	start := func() {
		t.Helper()
		h := &hostPorts{flows: newFlows(nil, nil)}
		for _, err := range []error{(&guarding{}).apply(conn, p), newLeaving(egress.Config{On: true}).apply(conn, p), h.apply(conn, []cni.Allocation{pod}, p.Snapshot)} {
			if err != nil {
				t.Error(err)
			}
		}
	}
	list := func(table string) string { return nettest.Run(t, "nft", "-a", "list", "table", "ip", table) }
	without := func(text string) []string { // handles are counted on, and what comes first depends on what was there
		return slices.Sorted(strings.SplitSeq(regexp.MustCompile(` # handle \d+`).ReplaceAllString(text, ""), "\n"))
	}
	objects := func(text string) []string { return regexp.MustCompile(`.*\{ # handle \d+`).FindAllString(text, -1) } // all but rules
	start()
	for table, harms := range map[string][]string{
		guard.Name: {
			"chain input { type filter hook input priority -200; }",
			"chain vxlan { type filter hook prerouting priority 0; }",
			"chain other { type filter hook input priority 0; udp dport 8472 drop; }",
			"set own { type ipv4_addr . ipv4_addr; }",
			"set own { type ipv4_addr; flags interval; }",
			"set other { type ipv4_addr; }; chain input { type filter hook input priority -300; ip saddr @other tcp dport { 80, 81 } drop; }",
		},
		egress.Name: {
			"chain postrouting { type nat hook postrouting priority 90; masquerade; }",
			"chain old { type nat hook postrouting priority 90; masquerade; }; chain older { goto leaving; }; chain leaving { }",
			"set pods-24 { type ipv6_addr; }",
		},
		hostport.Name: {
			"map ports { type inet_proto . inet_service : ipv4_addr; }",
			"chain prerouting { type nat hook prerouting priority -90; }",
			"chain output { }",
		},
	} {
		want := list(table)
		start()
		if got := list(table); !slices.Equal(objects(got), objects(want)) {
			t.Errorf("%s: a start with the same layout has made it anew:\n%s", table, got)
		}
		for _, harm := range harms {
			nettest.Run(t, "nft", "delete table ip "+table+"; table ip "+table+" { "+harm+"; }")
			before, err := conn.Generation()
			if err != nil {
				t.Fatal(err)
			}
			start()
			after, err := conn.Generation()
			if err != nil {
				t.Fatal(err)
			}
			if got := list(table); !slices.Equal(without(got), without(want)) {
				t.Errorf("%s: after %q it is\n%s\nwant\n%s", table, harm, got, want)
			}
			if n := after - before; n != 5 { // there is nothing to masquerade of IPv6
				t.Errorf("%s: after %q a start takes %d transactions, want one for each table: there may be no moment without", table, harm, n)
			}
		}
	}
}
