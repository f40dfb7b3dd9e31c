package iptables

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

var update = flag.Bool("update", false, "write the golden files")

// everything is a Table with each kind of frontend, policy and chain.
func everything() *proxy.Table {
	addr := func(s string) []netip.Addr { return []netip.Addr{netip.MustParseAddr(s)} }
	b := cluster.NewBuilder()
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: addr("192.0.2.1")})
	b.SetServiceCIDR(&cluster.ServiceCIDR{Key: cluster.Key{Name: "k"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	add := func(s *cluster.Service, endpoints ...cluster.Endpoint) {
		s.Namespace = "default"
		b.SetService(s)
		b.SetSlice(&cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: s.Name + "-1"}, Service: s.Name,
			Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}, {Protocol: cluster.UDP, Port: 5353}}, Endpoints: endpoints})
	}
	here := cluster.Endpoint{Address: netip.MustParseAddr("10.244.0.2"), Node: "n1", Ready: true, Serving: true}
	there := cluster.Endpoint{Address: netip.MustParseAddr("10.244.1.2"), Node: "n2", Ready: true, Serving: true}
	tcp := func(node uint16) []cluster.ServicePort {
		return []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80, NodePort: node}}
	}
	add(&cluster.Service{Key: cluster.Key{Name: "a-lb"}, Type: cluster.LoadBalancer, ClusterIPs: addr("10.96.0.1"), ExternalIPs: addr("203.0.113.1"),
		LoadBalancerIPs: addr("203.0.113.2"), SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Ports: tcp(30080)}, here, there)
	add(&cluster.Service{Key: cluster.Key{Name: "b-local"}, Type: cluster.NodePort, ClusterIPs: addr("10.96.0.2"),
		InternalLocal: true, ExternalLocal: true, Ports: tcp(30081)}, there)
	add(&cluster.Service{Key: cluster.Key{Name: "c-sticky"}, ClusterIPs: addr("10.96.0.3"), Affinity: 600, Ports: tcp(0)}, here, there)
	add(&cluster.Service{Key: cluster.Key{Name: "d-none"}, ClusterIPs: addr("10.96.0.4"), Ports: []cluster.ServicePort{{Protocol: cluster.UDP, Port: 53}}})
	add(&cluster.Service{Key: cluster.Key{Name: "e-same-as-d"}, ClusterIPs: addr("10.96.0.4"), Ports: []cluster.ServicePort{{Protocol: cluster.UDP, Port: 53}}}, here)
	return proxy.CompileAll(b.Publish(), proxy.Config{Node: "n1"})
}

func TestRender(t *testing.T) {
	r := Render(everything(), []netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00::2")}, false)
	got := r.Restore(map[string][]string{"nat": {"PL-SERVICES", "PL-SVC-gone"}}, Jumps[:1])
	for _, p := range r.Problems {
		got += "# " + p.String() + "\n"
	}
	const golden = "testdata/everything.rules"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for line := range strings.Lines(got) {
		if name, found := strings.CutPrefix(line, ":"); found && len(strings.Fields(name)[0]) > 28 {
			t.Errorf("a chain's name of more than 28 characters: %s", line)
		}
	}
}

// TestRender_order: the same Table gives the same text always.
func TestRender_order(t *testing.T) {
	first := Render(everything(), nil, false).Restore(nil, nil)
	for range 20 {
		if again := Render(everything(), nil, false).Restore(nil, nil); again != first {
			t.Fatalf("%s\nand\n%s", first, again)
		}
	}
}

func TestRemove(t *testing.T) {
	if got := Remove(map[string][]string{}, Jumps); got != "" {
		t.Errorf("nothing there: %q", got)
	}
	got := Remove(map[string][]string{"nat": {"PL-SERVICES"}}, Jumps[1:])
	if want := "*nat\n:PL-SERVICES - [0:0]\n-D PREROUTING -j PL-SERVICES\n-X PL-SERVICES\nCOMMIT\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
