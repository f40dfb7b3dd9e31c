package apply

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// sumOf adds what Counts gives for a Service port's frontend.
func sumOf(t *testing.T, conn *nft.Conn, service string, at netip.AddrPort) (n uint64) {
	t.Helper()
	all, err := Counts(conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Service == service && c.Frontend == at {
			n += c.New
		}
	}
	return n
}

func endpointSum(t *testing.T, conn *nft.Conn, service string) (all map[netip.Addr]uint64) {
	t.Helper()
	counts, err := EndpointCounts(conn, service)
	if err != nil {
		t.Fatal(err)
	}
	all = map[netip.Addr]uint64{}
	for _, c := range counts {
		all[c.Endpoint.Addr()] += c.New
	}
	return all
}

// TestCounters_kept makes connections between changes: frontends go on counting,
// and so do endpoints, whatever slots they move to.
func TestCounters_kept(t *testing.T) {
	for _, affinity := range []uint32{0, 1000} {
		eachFamily(t, func(t *testing.T, w *world) {
			for _, p := range []place{w.a, w.b, w.r} {
				w.server(p, 8080)
			}
			ap, conn := applier(t)
			program := func(change func(*cluster.Service), endpoints ...cluster.Endpoint) {
				t.Helper()
				s := w.cluster()
				s.service(func(svc *cluster.Service) {
					svc.CountEndpoints, svc.Affinity = true, affinity
					if change != nil {
						change(svc)
					}
				}, endpoints...)
				apply(t, ap, s.table(), w.pods())
			}
			vip, nodePort := netip.AddrPortFrom(w.clusterIP(1), 80), netip.AddrPortFrom(w.node.addr, 30080)
			sets := [][]cluster.Endpoint{{at(w.a), at(w.b), at(w.r)}, {at(w.b), at(w.r)}, {at(w.r), at(w.b), at(w.a)}, {at(w.b)}, {at(w.b), at(w.r)}}
			met := map[string]uint64{}
			for i, endpoints := range sets {
				program(nil, endpoints...)
				for range 10 {
					for _, to := range []netip.AddrPort{vip, nodePort} {
						server, _, err := w.ask(w.outside, "tcp", to)
						if err != nil {
							t.Fatal(err)
						}
						met[server]++
					}
				}
				want := uint64(10 * (i + 1))
				zero := netip.AddrPortFrom(w.addr("0.0.0.0", "::"), 30080)
				if vips, nodePorts := sumOf(t, conn, "default/web:t", vip), sumOf(t, conn, "default/web:t", zero); vips != want || nodePorts != want {
					t.Errorf("step %d: cluster IP %d, node port %d, want %d each", i, vips, nodePorts, want)
				}
				counts := endpointSum(t, conn, "default/web")
				for _, e := range endpoints {
					name := map[netip.Addr]string{w.a.addr: "a", w.b.addr: "b", w.r.addr: "r"}[e.Address]
					if i == 1 && counts[e.Address] != met[name] { // later ones were away in between
						t.Errorf("step %d: %s has counted %d, of %d", i, name, counts[e.Address], met[name])
					}
					if e.Address == w.b.addr && counts[e.Address] != met["b"] {
						t.Errorf("step %d: b, which stays, has counted %d, of %d", i, counts[e.Address], met["b"])
					}
				}
			}
			program(func(s *cluster.Service) { s.CountEndpoints = false }, at(w.a), at(w.b))
			if counts := endpointSum(t, conn, "default/web"); len(counts) != 0 {
				t.Errorf("not asked for: %v", counts)
			}
			if n := sumOf(t, conn, "default/web:t", vip); n != uint64(10*len(sets)) {
				t.Errorf("the cluster IP has counted %d, of %d", n, 10*len(sets))
			}
		})
	}
}
