package agent

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// bigNodes are as many as 100,000 pods need.
const bigNodes = 1000

// What a running agent does for an answer, with 10,000 Services of 10 endpoints on
// 1,000 nodes, in the first moment after a change of the cluster. The whole command, which asks it, has 200 ms.
func BenchmarkExplain(b *testing.B) {
	s := big(10_000)
	own := plan.CompileAll(plan.Input{
		Node: "n1", Overlay: overlay.Config{Mode: overlay.VXLAN, Cluster: "c"}, Proxy: proxy.Config{}, Snapshot: s,
		Underlay: link.Underlay{Device: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.200.1/24")}},
	})
	question, err := json.Marshal(explain.Access{From: "node/n1", To: "svc/default/svc77:80", Protocol: cluster.TCP})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		w := explain.World{Snapshot: s, Plans: map[string]*plan.Plan{"n1": own}, Compile: peersOf(own).plan}
		if r := explainReply(w, question); r.Error != nil {
			b.Fatal(r.Error)
		}
	}
}

// big is a cluster of that many Services with 10 endpoints each, on 1,000 nodes.
func big(services int) *cluster.Snapshot {
	b, n := cluster.NewBuilder(), 0
	for i := range bigNodes {
		b.SetNode(&cluster.Node{Key: cluster.Key{Name: fmt.Sprint("n", i)}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i>>8), byte(i), 0}), 24)}})
	}
	for i := range services {
		k := cluster.Key{Namespace: "default", Name: fmt.Sprint("svc", i)}
		b.SetService(&cluster.Service{Key: k, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)})}, Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
		slice := &cluster.EndpointSlice{Key: k, Service: k.Name, Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}}}
		for range 10 {
			node := n % bigNodes
			a := netip.AddrFrom4([4]byte{10, byte(128 + node>>8), byte(node), byte(2 + n/bigNodes)})
			slice.Endpoints = append(slice.Endpoints, cluster.Endpoint{Address: a, Ready: true, Serving: true, Node: fmt.Sprint("n", node)})
			n++
		}
		b.SetSlice(slice)
	}
	return b.Publish()
}
