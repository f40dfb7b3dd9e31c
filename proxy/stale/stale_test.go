package stale

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

const nodeAddr, elsewhere = "192.0.2.1", "203.0.113.9"

func local(a netip.Addr) bool { return a == netip.MustParseAddr(nodeAddr) }

// compile makes the Table of what is built so far.
func compile(b *cluster.Builder) *proxy.Table {
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr(nodeAddr)}})
	return proxy.CompileAll(b.Publish(), proxy.Config{Node: "n1"})
}

func key(name string) cluster.Key { return cluster.Key{Namespace: "default", Name: name} }

// dns is a Service with a UDP port 53 and a TCP one, on every kind of frontend.
func dns(name, ip string) *cluster.Service {
	return &cluster.Service{Key: key(name), Type: cluster.LoadBalancer,
		ClusterIPs: []netip.Addr{netip.MustParseAddr(ip)}, ExternalIPs: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
		LoadBalancerIPs: []netip.Addr{netip.MustParseAddr("198.51.100.2")},
		Ports: []cluster.ServicePort{
			{Name: "dns", Protocol: cluster.UDP, Port: 53, NodePort: 30053},
			{Name: "tcp", Protocol: cluster.TCP, Port: 53, NodePort: 30053}}}
}

func slice(service string, endpoints ...cluster.Endpoint) *cluster.EndpointSlice {
	return &cluster.EndpointSlice{Key: key(service + "-1"), Service: service,
		Ports:     []cluster.EndpointPort{{Name: "dns", Protocol: cluster.UDP, Port: 5353}, {Name: "tcp", Protocol: cluster.TCP, Port: 53}},
		Endpoints: endpoints}
}

func ready(ip string) cluster.Endpoint {
	return cluster.Endpoint{Address: netip.MustParseAddr(ip), Ready: true, Serving: true}
}

func TestStale(t *testing.T) {
	ending := ready("10.244.0.3")
	ending.Ready, ending.Terminating = false, true
	ended := ready("10.244.0.4")
	ended.Ready, ended.Serving, ended.Terminating = false, false, true
	unserving := ready("10.244.0.5")
	unserving.Serving = false // publishNotReadyAddresses
	b := cluster.NewBuilder()
	b.SetService(dns("full", "10.96.0.10"))
	b.SetSlice(slice("full", ready("10.244.0.2"), ending, ended, unserving))
	none := dns("none", "10.96.0.11")
	none.ExternalIPs, none.LoadBalancerIPs, none.Ports[0].NodePort = nil, nil, 30054
	b.SetService(none)
	other := dns("other", "10.96.0.12")
	other.ProxyName, other.ExternalIPs, other.LoadBalancerIPs, other.Ports[0].NodePort = "theirs", nil, nil, 30055
	b.SetService(other)
	x := New()
	if !x.Update(compile(b)) {
		t.Error("the first Snapshot needs no scan")
	}
	for _, tc := range []struct {
		dst, answer string
		stale       bool
		why         string
	}{
		{"10.96.0.10:53", "10.244.0.2:5353", false, "a ready endpoint"},
		{"10.96.0.10:53", "10.244.0.3:5353", false, "one that serves while it ends"},
		{"10.96.0.10:53", "10.244.0.5:5353", false, "published though not ready"},
		{"10.96.0.10:53", "10.244.0.4:5353", true, "one that has ended"},
		{"10.96.0.10:53", "10.244.0.9:5353", true, "no endpoint"},
		{"10.96.0.10:53", "10.244.0.2:53", true, "another port of the endpoint"},
		{"10.96.0.10:53", "10.96.0.10:53", true, "not translated, though there are endpoints"},
		{"198.51.100.1:53", "10.244.0.9:5353", true, "external IP"},
		{"198.51.100.2:53", "10.244.0.9:5353", true, "load balancer IP"},
		{"198.51.100.2:53", "10.244.0.2:5353", false, "load balancer IP, right"},
		{"10.96.0.10:54", "10.244.0.9:5353", false, "no frontend"},
		{nodeAddr + ":30053", "10.244.0.9:5353", true, "node port"},
		{nodeAddr + ":30053", "10.244.0.2:5353", false, "node port, right"},
		{elsewhere + ":30053", elsewhere + ":30053", false, "the same port of another machine"},
		{elsewhere + ":30053", "10.244.0.9:5353", false, "the same port of another machine, translated by someone"},
		{"10.96.0.11:53", "10.244.0.9:5353", true, "no endpoints at all"},
		{"10.96.0.11:53", "10.96.0.11:53", false, "no endpoints and not translated"},
		{nodeAddr + ":30054", "10.244.0.9:5353", true, "node port, no endpoints"},
		{nodeAddr + ":30054", nodeAddr + ":30054", false, "a program of the node"},
		{"10.96.0.12:53", "10.244.0.9:5353", false, "another proxy's Service"},
		{nodeAddr + ":30055", "10.244.0.9:5353", false, "another proxy's node port"},
		{"8.8.8.8:53", "8.8.8.8:53", false, "not ours"},
	} {
		_, got := x.Stale(netip.MustParseAddrPort(tc.dst), netip.MustParseAddrPort(tc.answer), local)
		if got != tc.stale {
			t.Errorf("%s answered by %s (%s): stale %v", tc.dst, tc.answer, tc.why, got)
		}
	}
}

func settled(x *Index) { x.Settled(false); x.Settled(true) }

func TestStale_deleted(t *testing.T) {
	b, x := cluster.NewBuilder(), New()
	b.SetService(dns("a", "10.96.0.10"))
	b.SetSlice(slice("a", ready("10.244.0.2")))
	x.Update(compile(b))
	settled(x)
	b.DeleteService(key("a"))
	if !x.Update(compile(b)) {
		t.Error("a deleted Service needs no scan")
	}
	for _, dst := range []string{"10.96.0.10:53", "198.51.100.1:53", nodeAddr + ":30053"} {
		d := netip.MustParseAddrPort(dst)
		if k, stale := x.Stale(d, netip.MustParseAddrPort("10.244.0.2:5353"), local); !stale || k != key("a") {
			t.Errorf("%s: %v %v", dst, k, stale)
		}
		if _, stale := x.Stale(d, d, local); stale {
			t.Errorf("%s: a flow that is not translated is stale", dst)
		}
	}
	x.Settled(true)
	for _, want := range []bool{true, false} {
		for _, dst := range []string{"10.96.0.10:53", nodeAddr + ":30053"} {
			if _, stale := x.Stale(netip.MustParseAddrPort(dst), netip.MustParseAddrPort("10.244.0.2:5353"), local); stale != want {
				t.Errorf("%s: IPv4 was looked at %v, what is gone is known %v", dst, !want, stale)
			}
		}
		x.Settled(false)
	}
}

func TestUpdate_scans(t *testing.T) {
	b, x := cluster.NewBuilder(), New()
	step := func(what string, want bool, change func()) {
		t.Helper()
		change()
		if got := x.Update(compile(b)); got != want {
			t.Errorf("%s: scan %v", what, got)
		}
	}
	step("a Service without endpoints", true, func() { b.SetService(dns("a", "10.96.0.10")) })
	step("the first endpoint", true, func() { b.SetSlice(slice("a", ready("10.244.0.2"))) })
	step("an endpoint more", false, func() { b.SetSlice(slice("a", ready("10.244.0.2"), ready("10.244.0.3"))) })
	ending := ready("10.244.0.2")
	ending.Ready, ending.Terminating = false, true
	step("one ends, serving", false, func() { b.SetSlice(slice("a", ending, ready("10.244.0.3"))) })
	step("one is gone", true, func() { b.SetSlice(slice("a", ready("10.244.0.3"))) })
	tcp := dns("b", "10.96.0.20")
	tcp.ExternalIPs, tcp.LoadBalancerIPs, tcp.Ports = nil, nil, tcp.Ports[1:]
	step("a Service of TCP alone", false, func() { b.SetService(tcp); b.SetSlice(slice("b", ready("10.244.0.9"))) })
	step("its endpoint is gone", false, func() { b.SetSlice(slice("b")) })
	step("the same again", false, func() { b.SetService(dns("a", "10.96.0.10")) })
	step("the last endpoint is gone", true, func() { b.DeleteSlice(key("a-1")) })
}

// TestUpdate_incremental: after any history the Index is that of the last Table
// alone.
func TestUpdate_incremental(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 300 {
		b, x := cluster.NewBuilder(), New()
		var s *proxy.Table
		for range 20 {
			name := fmt.Sprint("s", r.IntN(3))
			switch r.IntN(4) {
			case 0:
				b.DeleteService(key(name))
			case 1:
				var es []cluster.Endpoint
				for range r.IntN(3) {
					es = append(es, ready(fmt.Sprint("10.244.0.", r.IntN(4))))
				}
				b.SetSlice(slice(name, es...))
			default:
				svc := dns(name, fmt.Sprint("10.96.0.", r.IntN(4)))
				svc.Ports[0].NodePort = uint16(30000 + r.IntN(3))
				b.SetService(svc)
			}
			s = compile(b)
			x.Update(s)
		}
		settled(x)
		whole := New()
		whole.Update(s)
		for d := range 5 {
			for _, dst := range []string{fmt.Sprint("10.96.0.", d, ":53"), "198.51.100.1:53", fmt.Sprint(nodeAddr, ":", 30000+d)} {
				for a := range 5 {
					dst, answer := netip.MustParseAddrPort(dst), netip.MustParseAddrPort(fmt.Sprint("10.244.0.", a, ":5353"))
					_, got := x.Stale(dst, answer, local)
					if _, want := whole.Stale(dst, answer, local); got != want {
						t.Fatalf("seed %d: %s answered by %s: stale %v, anew %v", seed, dst, answer, got, want)
					}
				}
			}
		}
		if a, b := slices.Sorted(maps.Keys(x.nodes)), slices.Sorted(maps.Keys(whole.nodes)); !slices.Equal(a, b) {
			t.Fatalf("seed %d: node ports %v, anew %v", seed, a, b)
		}
	}
}

func BenchmarkUpdate_oneEndpoint(b *testing.B) {
	builder, x := cluster.NewBuilder(), New()
	for i := range 10000 {
		s := dns(fmt.Sprint("s", i), fmt.Sprintf("10.97.%d.%d", i>>8, i&255))
		s.ExternalIPs, s.LoadBalancerIPs, s.Ports[0].NodePort = nil, nil, 0
		builder.SetService(s)
		builder.SetSlice(slice(fmt.Sprint("s", i), ready("10.244.0.2"), ready("10.244.0.3")))
	}
	old := builder.Publish()
	table := proxy.CompileAll(old, proxy.Config{Node: "n1"})
	x.Update(table)
	var tables [2]*proxy.Table
	for i := range tables {
		builder.SetSlice(slice("s7", []cluster.Endpoint{ready("10.244.0.2"), ready("10.244.0.3")}[i:]...))
		now := builder.Publish()
		table = proxy.Compile(table, old, now, proxy.Config{Node: "n1"})
		old, tables[i] = now, table

	}
	for i := range b.N {
		x.Update(tables[i%2])
	}
}
