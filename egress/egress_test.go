package egress

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func nodes(t *testing.T, more ...*cluster.Node) cluster.Map[cluster.Node] {
	t.Helper()
	b := cluster.NewBuilder()
	for i, name := range []string{"n1", "n2"} {
		d := string(rune('1' + i))
		b.SetNode(&cluster.Node{
			Key:       cluster.Key{Name: name},
			Addresses: []netip.Addr{netip.MustParseAddr("192.0.2." + d), netip.MustParseAddr("2001:db8::" + d)},
			PodCIDRs:  []netip.Prefix{netip.MustParsePrefix("10.244." + d + ".0/24"), netip.MustParsePrefix("fd00:244:0:" + d + "::/64")},
		})
	}
	for _, n := range more {
		b.SetNode(n)
	}
	return b.Publish().Nodes
}

func TestCompile(t *testing.T) {
	all := nodes(t)
	c := Config{On: true, Exclude: []netip.Prefix{netip.MustParsePrefix("198.51.100.7/24"), netip.MustParsePrefix("2001:db8:1::/48")}}
	r := Compile(c, "n1", all, nft.IPv4)
	want := Rules{
		Sources: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		Nodes:   []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
		Pods:    []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")},
		Exclude: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")},
	}
	if !r.Equal(want) {
		t.Errorf("got %+v, want %+v", r, want)
	}
	if r6 := Compile(c, "n1", all, nft.IPv6); len(r6.Sources) != 1 || len(r6.Exclude) != 1 || !r6.Sources[0].Addr().Is6() {
		t.Errorf("IPv6: %+v", r6)
	}
	for _, off := range []Rules{Compile(Config{}, "n1", all, nft.IPv4), Compile(c, "other", all, nft.IPv4)} {
		if len(off.Sources) != 0 {
			t.Errorf("%+v, want nothing", off)
		}
	}
}

// TestTx_kernel has the kernel take the rules again and again, with other nodes
// each time, and nft print what is meant.
func TestTx_kernel(t *testing.T) {
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft:", err)
	}
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	third := &cluster.Node{Key: cluster.Key{Name: "n3"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.3")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.245.0.0/25")}}
	c := Config{On: true, Exclude: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}
	for _, all := range []cluster.Map[cluster.Node]{nodes(t), nodes(t, third), nodes(t)} {
		for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
			if err := conn.Commit(Compile(c, "n1", all, f).Tx(f)); err != nil {
				t.Fatal(err)
			}
		}
		list := nettest.Run(t, "nft", "list", "table", "ip", Name)
		wants := []string{"ip saddr 10.244.1.0/24 jump leaving", "ip daddr @nodes return", "ip daddr & 255.255.255.0 == @pods-24 return",
			"ip daddr 198.51.100.0/24 return", "masquerade fully-random", "elements = { 10.244.1.0, 10.244.2.0 }"}
		if has := strings.Contains(list, "== @pods-25 return"); has != (all.Len() == 3) {
			t.Errorf("the rule of the third node: %v\n%s", has, list)
		}
		for _, w := range wants {
			if strings.Count(list, w) != 1 {
				t.Errorf("%q is not there once:\n%s", w, list)
			}
		}
	}
	if list := nettest.Run(t, "nft", "list", "table", "ip6", Name); !strings.Contains(list, "ip6 daddr & ffff:ffff:ffff:ffff:: == @pods-64 return") {
		t.Error(list)
	}
}
