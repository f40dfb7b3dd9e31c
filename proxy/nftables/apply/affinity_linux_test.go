package apply

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// sameServer asks n times and gives the one server that answered, or fails.
func (w *world) sameServer(from place, network string, n int, to ...netip.AddrPort) string {
	w.t.Helper()
	first := ""
	for i := range n {
		server, _, err := w.ask(from, network, to[i%len(to)])
		if err != nil {
			w.t.Fatal(err)
		}
		if first == "" {
			first = server
		}
		if server != first {
			w.t.Fatalf("connection %d, to %s, met %s, the first one %s", i, to[i%len(to)], server, first)
		}
	}
	return first
}

// spreads says whether new connections meet more than one server.
func (w *world) spreads(from place, network string, to netip.AddrPort) bool {
	w.t.Helper()
	met := map[string]bool{}
	for range 40 {
		server, _, err := w.ask(from, network, to)
		if err != nil {
			w.t.Fatal(err)
		}
		met[server] = true
	}
	return len(met) > 1
}

// TestAffinity keeps a client at its server whatever frontend it uses, while other
// endpoints come and go, over a restart of the agent, and not longer.
func TestAffinity(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		for _, p := range []place{w.a, w.b, w.r} {
			w.server(p, 8080)
		}
		ap, conn := applier(t)
		vip, nodePort := netip.AddrPortFrom(w.clusterIP(1), 80), netip.AddrPortFrom(w.node.addr, 30080)
		program := func(seconds uint32, endpoints ...cluster.Endpoint) {
			t.Helper()
			s := w.cluster()
			s.service(func(svc *cluster.Service) { svc.Affinity = seconds }, endpoints...)
			apply(t, ap, s.table(), w.pods())
			forgetFlows(t) // a socket may get the port of an earlier one, whose flow leads elsewhere
		}
		a, b, r := at(w.a), at(w.b), at(w.r)
		endpoints := map[string]cluster.Endpoint{"a": a, "b": b, "r": r}
		program(1000, a, b, r)
		for _, network := range []string{"tcp", "udp"} {
			had := w.sameServer(w.outside, network, 30, vip, nodePort)
			// The other endpoints change, and are renewed by a chain of their own.
			others := []cluster.Endpoint{endpoints[had]}
			program(1000, others...)
			w.sameServer(w.outside, network, 5, vip)
			program(1000, a, b, r)
			ap = New(conn, nft.IPv4, nft.IPv6) // a restart
			program(1000, a, b, r)
			if got := w.sameServer(w.outside, network, 30, vip, nodePort); got != had {
				t.Errorf("%s: %s after a restart, %s before", network, got, had)
			}
			if err := ap.Tidy(); err != nil {
				t.Fatal(err)
			}
			if got := w.sameServer(w.outside, network, 30, vip, nodePort); got != had {
				t.Errorf("%s: %s after Tidy, %s before", network, got, had)
			}
			// Its endpoint goes, and comes back: nobody belongs to it any more.
			var rest []cluster.Endpoint
			for name, e := range endpoints {
				if name != had {
					rest = append(rest, e)
				}
			}
			program(1000, rest...)
			next := w.sameServer(w.outside, network, 30, vip, nodePort)
			program(1000, a, b, r)
			if got := w.sameServer(w.outside, network, 30, vip, nodePort); got != next {
				t.Errorf("%s: %s after its first endpoint came back, %s before", network, got, next)
			}
		}
		program(0, a, b, r)
		if !w.spreads(w.outside, "tcp", vip) {
			t.Error("without affinity, 40 connections met one server of three")
		}
		program(1, a, b)
		met := map[string]bool{}
		for i := 0; len(met) < 2; i++ {
			if i == 20 {
				t.Fatal("a client stays for longer than the second that it may")
			}
			met[w.sameServer(w.outside, "tcp", 5, vip)] = true
			time.Sleep(1500 * time.Millisecond)
		}
	})
}

// TestAffinity_objects checks that the chains and sets of affinity come and go with
// their Service: what is left after a Tidy is what a load makes.
func TestAffinity_objects(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, conn := applier(t)
		count := func() int {
			chains, err := conn.Chains(ap.families[proxy.Family(w.v6)].applied.Ruleset().Table)
			if err != nil {
				t.Fatal(err)
			}
			return len(chains)
		}
		program := func(seconds uint32, endpoints ...cluster.Endpoint) {
			t.Helper()
			s := w.cluster()
			s.service(func(svc *cluster.Service) { svc.Affinity = seconds }, endpoints...)
			apply(t, ap, s.table(), w.pods())
		}
		program(0, at(w.a))
		if err := ap.Tidy(); err != nil {
			t.Fatal(err)
		}
		before := count()
		for range 3 {
			program(10, at(w.a), at(w.b))
			program(20, at(w.a), at(w.r))
			program(20)
			program(20, at(w.r))
		}
		program(0, at(w.a))
		if count() == before {
			t.Error("no chain of affinity is left before Tidy")
		}
		if err := ap.Tidy(); err != nil {
			t.Fatal(err)
		}
		if after := count(); after != before {
			t.Errorf("%d chains after, %d before", after, before)
		}
	})
}

// TestAffinity_noNotices checks that clients who come and are forgotten are no
// change of the table by others, which would have it built anew.
func TestAffinity_noNotices(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		w.server(w.a, 8080)
		ap, conn := applier(t)
		s := w.cluster()
		s.service(func(svc *cluster.Service) { svc.Affinity = 1 }, at(w.a))
		apply(t, ap, s.table(), w.pods())
		m, err := nft.NewMonitor(0, conn.PortID())
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = m.Run(ctx, func(e nft.Event) { t.Errorf("a notice: %+v", e) })
		}()
		for _, from := range []place{w.b, w.r, w.outside, w.node} {
			w.sameServer(from, "tcp", 2, netip.AddrPortFrom(w.clusterIP(1), 80))
		}
		<-ended
		if err := ap.Audit(s.table(), w.pods()); err != nil || ap.Doubtful() {
			t.Errorf("audit: doubtful %v, %v", ap.Doubtful(), err)
		}
	})
}
