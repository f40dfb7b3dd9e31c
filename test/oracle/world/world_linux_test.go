package world

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/test/oracle/packet"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func newWorld(t *testing.T) *World {
	t.Helper()
	nettest.New(t) // skips where there can be no namespaces
	w, err := New(Config{
		Pods:  []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")},
		Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:192::1")},
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// Without any rules, packets come out where they are routed to, and the node
// refuses by itself.
func TestShoot(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		from       Place
		source, to string
		at         Place
	}{
		{Pods, "10.244.1.2", "198.51.100.1:80", Uplink},
		{Pods, "10.244.1.2", "10.244.1.3:80", Pods},
		{Pods, "fd00:244:1::2", "[fd00:198::1]:80", Uplink},
		{Uplink, "198.51.100.1", "10.244.1.2:80", Pods},
		{Uplink, "fd00:198::1", "[fd00:244:1::2]:80", Pods},
		{Uplink, "fd00:198::1", "[fd00:192::1]:80", Node},
		{Uplink, "198.51.100.1", "192.0.2.1:80", Node},
		{Node, "192.0.2.1", "198.51.100.1:80", Uplink},
		{Node, "192.0.2.1", "10.244.1.2:80", Pods},
		{Node, "192.0.2.1", "192.0.2.1:80", Node},
		{Node, "fd00:192::1", "[fd00:244:1::2]:80", Pods},
		{Node, "fd00:192::1", "[fd00:192::1]:80", Node},
		{Node, "203.0.113.1", "198.51.100.1:80", Uplink}, // a forged source
		{Node, "192.0.2.1", "127.0.0.1:80", Node},
	} {
		for _, protocol := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
			shot := Shot{From: c.from, Source: netip.MustParseAddr(c.source), Protocol: protocol, To: netip.MustParseAddrPort(c.to)}
			out, err := w.Shoot([]Shot{shot})
			if err != nil {
				t.Fatal(err)
			}
			if o := out[0]; o.At != c.at || o.Dst != shot.To || o.Changed || o.Refused {
				t.Errorf("%v: %+v, want at %s", shot, o, c.at)
			}
		}
	}
}

func TestShoot_refusedAndDropped(t *testing.T) {
	w := newWorld(t)
	err := w.Do(func() error {
		for _, rule := range []string{
			"add table inet t", "add chain inet t f { type filter hook forward priority 0; }", "add chain inet t o { type filter hook output priority 0; }",
			"add rule inet t f th dport 81 reject", "add rule inet t f tcp dport 82 reject with tcp reset", "add rule inet t f th dport 83 drop",
			"add rule inet t o th dport 81 reject", "add rule inet t o tcp dport 82 reject with tcp reset", "add rule inet t o th dport 83 drop",
		} {
			nettest.Run(t, "nft", rule)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, v6 := range []bool{false, true} {
		for from, source := range map[Place][2]string{Pods: {"10.244.1.2", "fd00:244:1::2"}, Node: {"192.0.2.1", "fd00:192::1"}} {
			src, to := netip.MustParseAddr(source[0]), netip.MustParseAddr("198.51.100.1")
			if v6 {
				src, to = netip.MustParseAddr(source[1]), netip.MustParseAddr("fd00:198::1")
			}
			shot := func(p cluster.Protocol, port uint16) Shot {
				return Shot{From: from, Source: src, Protocol: p, To: netip.AddrPortFrom(to, port)}
			}
			var shots []Shot
			for range 200 {
				shots = append(shots, shot(cluster.TCP, 81), shot(cluster.UDP, 81), shot(cluster.SCTP, 81),
					shot(cluster.TCP, 82), shot(cluster.TCP, 83), shot(cluster.UDP, 83), shot(cluster.SCTP, 83))
			}
			out, err := w.Shoot(shots)
			if err != nil {
				t.Fatal(err)
			}
			icmp := Outcome{At: Nowhere, Refused: true, Kind: packet.Unreachable}
			reset := Outcome{At: Nowhere, Refused: true, Kind: packet.Reset}
			lost := Outcome{At: Nowhere}
			for i, o := range out {
				if want := []Outcome{icmp, icmp, icmp, reset, lost, lost, lost}[i%7]; o != want {
					t.Fatalf("%d: %v: %+v, want %+v", i, shots[i], o, want)
				}
			}
		}
	}
}
