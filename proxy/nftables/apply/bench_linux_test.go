package apply

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// many makes so many Services of ten endpoints each, in IPv4.
func many(services int) *proxy.Table {
	set := map[cluster.Key]*proxy.Entry{}
	for i := range services {
		front := netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
		p := proxy.Port{Name: "http", Protocol: cluster.TCP, Frontends: clusterIPs(netip.AddrPortFrom(front, 80))}
		p.Endpoints[0].Any = true
		for b := range 10 {
			p.Endpoints[0].Cluster = append(p.Endpoints[0].Cluster, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(200 + b), byte(i >> 8), byte(i)}), 8080))
		}
		k := cluster.Key{Namespace: fmt.Sprint("team-", i%100), Name: fmt.Sprint("service-", i)}
		set[k] = &proxy.Entry{Key: k, Ports: []proxy.Port{p}}
	}
	return &proxy.Table{Services: cluster.Map[proxy.Entry]{}.With(set)}
}

var sizes = []int{1000, 10000, 30000}

// BenchmarkCold is from a Table to a table in force, in an empty namespace.
func BenchmarkCold(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tb := many(n)
			nettest.New(b)
			conn := dialBench(b)
			for b.Loop() {
				ap := New(conn, nft.IPv4)
				apply(b, ap, tb, nil)
				b.StopTimer()
				if err := ap.Remove(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkCold_monitored is BenchmarkCold with a Monitor, for which the kernel
// writes a notice of each element.
func BenchmarkCold_monitored(b *testing.B) {
	tb := many(10000)
	nettest.New(b)
	conn := dialBench(b)
	m, err := nft.NewMonitor(0, conn.PortID())
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		_ = m.Run(context.Background(), func(e nft.Event) { b.Errorf("event %+v", e) })
	}()
	defer m.Close()
	for b.Loop() {
		ap := New(conn, nft.IPv4)
		apply(b, ap, tb, nil)
		b.StopTimer()
		if err := ap.Remove(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkStart is a start with everything in the kernel as wanted.
func BenchmarkStart(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tb := many(n)
			nettest.New(b)
			conn := dialBench(b)
			apply(b, New(conn, nft.IPv4), tb, nil)
			for b.Loop() {
				apply(b, New(conn, nft.IPv4), tb, nil)
			}
		})
	}
}

// BenchmarkOneEndpoint takes one endpoint away and gives it back, of another
// Service each time: every change is another number of endpoints.
func BenchmarkOneEndpoint(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tb := many(n)
			nettest.New(b)
			conn := dialBench(b)
			ap := New(conn, nft.IPv4)
			apply(b, ap, tb, nil)
			var took []time.Duration
			for i := 0; b.Loop(); i++ {
				j := i / 2 * 7919 % n
				k := cluster.Key{Namespace: fmt.Sprint("team-", j%100), Name: fmt.Sprint("service-", j)}
				e := *tb.Services.Get(k)
				e.Ports = slices.Clone(e.Ports)
				if all := e.Ports[0].Endpoints[0].Cluster; i%2 == 0 {
					e.Ports[0].Endpoints[0].Cluster = all[:9]
				} else {
					e.Ports[0].Endpoints[0].Cluster = all[:10]
				}
				tb = with(tb, &e)
				start := time.Now()
				apply(b, ap, tb, nil)
				took = append(took, time.Since(start))
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
			b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-µs")
		})
	}
}

// BenchmarkChurn changes one Service of a hundred at a time, as one Table: what a
// second of churn costs.
func BenchmarkChurn(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tb := many(n)
			nettest.New(b)
			ap := New(dialBench(b), nft.IPv4)
			apply(b, ap, tb, nil)
			for i := 0; b.Loop(); i++ {
				set := map[cluster.Key]*proxy.Entry{}
				for j := range n / 100 {
					s := (i/2*n/100 + j) % n
					k := cluster.Key{Namespace: fmt.Sprint("team-", s%100), Name: fmt.Sprint("service-", s)}
					e := *tb.Services.Get(k)
					e.Ports = slices.Clone(e.Ports)
					e.Ports[0].Endpoints[0].Cluster = e.Ports[0].Endpoints[0].Cluster[:10-(i+1)%2]
					set[k] = &e
				}
				tb = &proxy.Table{Services: tb.Services.With(set)}
				apply(b, ap, tb, nil)
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(n/100), "µs/Service")
		})
	}
}

func dialBench(b *testing.B) *nft.Conn {
	b.Helper()
	c, err := nft.Dial(0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() })
	return c
}
