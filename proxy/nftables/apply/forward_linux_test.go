package apply

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

// TestSources asks through a Service from everywhere, and checks the source that
// the server sees.
func TestSources(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		toA, toB, toR, toAny := w.vip(1, 80), w.vip(2, 80), w.vip(3, 80), w.vip(4, 80)
		a, b, r := w.server(w.a, 8080), w.server(w.b, 8080), w.server(w.r, 8080)
		apply(t, ap, table(w.service("a", toA, a), w.service("b", toB, b), w.service("r", toR, r), w.service("any", toAny, a, b, r)), w.pods())
		gateway := netip.MustParseAddr(map[bool]string{false: "10.244.1.1", true: "fd00:244:1::1"}[w.v6])
		uplink := netip.MustParseAddr(map[bool]string{false: "198.51.100.1", true: "fd00:198::1"}[w.v6])
		for _, tc := range []struct {
			name   string
			from   place
			to     netip.AddrPort
			server string
			source []netip.Addr
		}{
			{"pod to pod of the node", w.a, toB, "b", []netip.Addr{w.a.addr}},
			{"pod to pod of another node keeps its address", w.a, toR, "r", []netip.Addr{w.a.addr}},
			{"hairpin", w.a, toA, "a", []netip.Addr{gateway}},
			{"node to its pod", w.node, toA, "a", []netip.Addr{gateway}},
			{"node to a pod of another node", w.node, toR, "r", []netip.Addr{uplink}},
			{"outside to a pod of the node", w.outside, toA, "a", []netip.Addr{gateway}},
			{"outside to a pod of another node", w.outside, toR, "r", []netip.Addr{uplink}},
			{"remote pod to a pod of the node", w.r, toB, "b", []netip.Addr{gateway}},
		} {
			for _, network := range []string{"tcp", "udp"} {
				server, source, err := w.ask(tc.from, network, tc.to)
				if err != nil || server != tc.server || !slices.Contains(tc.source, source) {
					t.Errorf("%s, %s: %s saw %s, %v; want %s seeing %v", tc.name, network, server, source, err, tc.server, tc.source)
				}
			}
		}
	})
}

// TestSpread makes 1,200 connections to three backends. With p = 1/3 the standard
// deviation is 16; 5 of them is a chance of 1 in a million.
func TestSpread(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		vip := w.vip(1, 80)
		backends := []netip.AddrPort{w.server(w.a, 8080), w.server(w.b, 8080), w.server(w.r, 8080)}
		apply(t, ap, table(w.service("web", vip, backends...)), w.pods())
		for _, network := range []string{"tcp", "udp"} {
			const n = 1200
			hits := map[string]int{}
			for range n {
				server, _, err := w.ask(w.b, network, vip)
				if err != nil {
					t.Fatal(err)
				}
				hits[server]++
			}
			for _, name := range []string{"a", "b", "r"} {
				if math.Abs(float64(hits[name]-n/3)) > 5*math.Sqrt(n*1/3.*2/3) {
					t.Errorf("%s: %v", network, hits)
				}
			}
		}
	})
}

// TestRefused checks that a Service without endpoints answers at once, and more
// often than the kernel sends ICMP errors.
func TestRefused(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		vip := w.vip(1, 80)
		apply(t, ap, table(w.service("none", vip)), w.pods())
		for _, from := range []place{w.a, w.node, w.outside} {
			for i := range 20 {
				start := time.Now()
				_, err := w.dial(from, "tcp", vip)
				if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > 500*time.Millisecond {
					t.Fatalf("tcp from %s, connection %d: %v after %v", from.name, i, err, time.Since(start))
				}
			}
			start := time.Now()
			_, _, err := w.ask(from, "udp", vip)
			// A sender on the node is told by the send itself that it may not.
			refused := errors.Is(err, syscall.ECONNREFUSED) || from.name == "node" && errors.Is(err, syscall.EPERM)
			if !refused || time.Since(start) > 500*time.Millisecond {
				t.Errorf("udp from %s: %v after %v", from.name, err, time.Since(start))
			}
		}
	})
}

// TestEstablished keeps a connection through changes that take its endpoint, its
// Service and the whole table's former self away.
func TestEstablished(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		vip := w.vip(1, 80)
		a, b := w.server(w.a, 8080), w.server(w.b, 8080)
		tb := table(w.service("web", vip, a))
		apply(t, ap, tb, w.pods())
		c, err := w.dial(w.outside, "tcp", vip)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		alive := func(when string) {
			t.Helper()
			if server, _, err := question(c); err != nil || server != "a" {
				t.Fatalf("%s: %s, %v", when, server, err)
			}
		}
		alive("at first")
		for _, change := range []struct {
			name string
			e    *proxy.Entry
		}{
			{"another endpoint", w.service("web", vip, b)},
			{"no endpoint", w.service("web", vip)},
			{"no Service", &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: "web"}}},
		} {
			tb = with(tb, change.e)
			apply(t, ap, tb, w.pods())
			alive(change.name)
		}
		for _, f := range ap.families {
			f.applied, f.rebuild = nil, true
		}
		apply(t, ap, tb, w.pods())
		alive("table built anew")
	})
}

// TestChurn makes connections all the time while endpoints come and go; all of
// them must be answered. One endpoint is there always.
func TestChurn(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		churn(t, w, func(change, all int) (endpoints int, swap bool) { return 1 + change*7%all, change%50 == 49 })
	})
}

// TestSwap makes connections all the time while the table is built anew beside
// itself again and again.
func TestSwap(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		churn(t, w, func(_, all int) (endpoints int, swap bool) { return all, true })
	})
}

// churn changes a Service as next says, for three seconds.
func churn(t *testing.T, w *world, next func(change, all int) (endpoints int, swap bool)) {
	ap, _ := applier(t)
	vip := w.vip(1, 80)
	var all []netip.AddrPort
	for port := uint16(8080); port < 8083; port++ {
		all = append(all, w.server(w.a, port), w.server(w.r, port))
	}
	tb := table(w.service("web", vip, all...))
	apply(t, ap, tb, w.pods())
	var stop, failed atomic.Bool
	asked := make(chan int)
	go func() {
		lockInto(w.b.ns)
		n := 0
		for ; !stop.Load() && !failed.Load(); n++ {
			if _, _, err := askHere("tcp", vip); err != nil {
				failed.Store(true)
				t.Errorf("connection %d: %v", n, err)
			}
		}
		asked <- n
	}()
	end := time.Now().Add(3 * time.Second)
	changes := 0
	for ; time.Now().Before(end) && !failed.Load(); changes++ {
		n, swap := next(changes, len(all))
		for _, f := range ap.families {
			if swap {
				f.applied, f.rebuild = nil, true
			}
		}
		tb = with(tb, w.service("web", vip, all[len(all)-n:]...))
		apply(t, ap, tb, w.pods())
	}
	stop.Store(true)
	n := <-asked
	t.Logf("%d changes, %d connections", changes, n)
	if n < 100 || changes < 50 {
		t.Errorf("too few to mean anything")
	}
}

// TestSlotGone is the moment that a packet may meet between its look-ups: the
// number of endpoints is still that of before, the last slot has gone.
func TestSlotGone(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, conn := applier(t)
		vip := w.vip(1, 80)
		backends := []netip.AddrPort{w.server(w.a, 8080), w.server(w.r, 8080)}
		apply(t, ap, table(w.service("web", vip, backends...)), w.pods())
		r := nftables.NewRuleset(nft.FamilyOf(w.v6), nftables.Names[0])
		remove := func(slot uint32) {
			t.Helper()
			tx := &nft.Tx{}
			tx.DeleteElements(r.Endpoints, nft.Element{Key: nft.Concat(nil).Addr(vip.Addr()).Proto(6).Port(80).Mark(slot)})
			if err := conn.Commit(tx); err != nil {
				t.Fatal(err)
			}
		}
		remove(1)
		for range 50 {
			if server, _, err := w.ask(w.b, "tcp", vip); err != nil || server != "a" {
				t.Fatalf("slot 1 gone: %s, %v", server, err)
			}
		}
		remove(0)
		if _, err := w.dial(w.b, "tcp", vip); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("no slot: %v", err)
		}
	})
}

// TestHostEndpoint reaches an endpoint on the node's own address.
func TestHostEndpoint(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		vip := w.vip(1, 80)
		apply(t, ap, table(w.service("host", vip, w.server(w.node, 8080))), w.pods())
		for _, from := range []place{w.a, w.node, w.outside} {
			if server, source, err := w.ask(from, "tcp", vip); err != nil || server != "node" {
				t.Errorf("from %s: %s saw %s, %v", from.name, server, source, err)
			}
		}
	})
}

// TestCounters reads from the services map how many connections a Service got.
func TestCounters(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, conn := applier(t)
		vip := w.vip(1, 80)
		apply(t, ap, table(w.service("web", vip, w.server(w.a, 8080))), w.pods())
		for range 7 {
			if _, _, err := w.ask(w.b, "tcp", vip); err != nil {
				t.Fatal(err)
			}
		}
		var f *family
		for _, f = range ap.families {
			if (f.family == 10) == w.v6 {
				break
			}
		}
		es, err := conn.Elements(f.applied.Ruleset().Services)
		if err != nil || len(es) != 2 {
			t.Fatalf("%d elements, %v", len(es), err)
		}
		for _, e := range es {
			want := map[byte]uint64{6: 7, 17: 0}[e.Key[len(e.Key)-8]]
			if e.Counter == nil || e.Counter.Packets != want {
				t.Errorf("%s: want %d packets", f.applied.Ruleset().Services.ElementText(e, false), want)
			}
		}
	})
}
