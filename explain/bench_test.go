package explain_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// big is a cluster of that many Services with 10 endpoints each, on two nodes.
func big(services int) *cluster.Snapshot {
	b := cluster.NewBuilder()
	for i, cidr := range []string{"10.128.0.0/10", "10.192.0.0/10"} {
		name := fmt.Sprint("n", i+1)
		b.SetNode(&cluster.Node{Key: cluster.Key{Name: name}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, 200, byte(i + 1)})}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}})
	}
	ready := func(i int) cluster.Endpoint {
		n := i/2 + 1
		a := netip.AddrFrom4([4]byte{10, byte(128 + 64*(i%2) + n>>16), byte(n >> 8), byte(n)})
		return cluster.Endpoint{Address: a, Ready: true, Serving: true, Node: fmt.Sprint("n", i%2+1)}
	}
	dns := cluster.Key{Namespace: "kube-system", Name: "kube-dns"}
	b.SetService(&cluster.Service{Key: dns, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Ports: []cluster.ServicePort{{Name: "dns", Protocol: cluster.UDP, Port: 53}}})
	b.SetSlice(&cluster.EndpointSlice{Key: dns, Service: dns.Name, Ports: []cluster.EndpointPort{{Name: "dns", Protocol: cluster.UDP, Port: 53}}, Endpoints: []cluster.Endpoint{ready(0), ready(1)}})
	for i := range services {
		k := cluster.Key{Namespace: "default", Name: fmt.Sprint("svc", i)}
		b.SetService(&cluster.Service{Key: k, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)})}, Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
		s := &cluster.EndpointSlice{Key: k, Service: k.Name, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}}}
		for j := range 10 {
			s.Endpoints = append(s.Endpoints, ready(i*10+j))
		}
		b.SetSlice(s)
	}
	b.SetPod(&cluster.Pod{Key: cluster.Key{Namespace: "default", Name: "client"}, Node: "n1", IPs: []netip.Addr{netip.MustParseAddr("10.129.255.2")}})
	return b.Publish()
}

// An answer with Plans at hand, by name, with 10,000 Services of 10 endpoints.
func BenchmarkExplain_10000(b *testing.B) {
	s := big(10_000)
	plans := map[string]*plan.Plan{"n1": compile(s, overlay.VXLAN, "n1"), "n2": compile(s, overlay.VXLAN, "n2")}
	for b.Loop() {
		a, err := explain.Explain(explain.World{Snapshot: s, Plans: plans}, explain.Access{From: "client", To: "svc77:80", Protocol: cluster.TCP})
		if err != nil || a.Verdict != explain.Unreachable && a.Verdict != explain.Delivered {
			b.Fatal(err, a)
		}
	}
}
