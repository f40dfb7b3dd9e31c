package proxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// parseEndpoint reads "10.1.0.1 n2 zone=a node=n1,n2 leaving|gone|notready": an
// endpoint on a node, ready where nothing else is said.
func parseEndpoint(text string) cluster.Endpoint {
	words := strings.Fields(text)
	e := cluster.Endpoint{Address: netip.MustParseAddr(words[0]), Node: words[1], Ready: true, Serving: true}
	for _, w := range words[2:] {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "zone":
			e.ZoneHints = strings.Split(value, ",")
		case "node":
			e.NodeHints = strings.Split(value, ",")
		case "leaving":
			e.Ready, e.Terminating = false, true
		case "gone":
			e.Ready, e.Serving, e.Terminating = false, false, true
		case "notready":
			e.Ready, e.Serving = false, false
		case "unready-serving":
			e.Ready = false
		}
	}
	return e
}

func lastOctets(as []netip.AddrPort) string {
	var out []string
	for _, a := range as {
		out = append(out, a.Addr().String()[len("10.1.0."):])
	}
	return strings.Join(out, " ")
}

// TestChoose has the cases of Kubernetes' TestCategorizeEndpoints (1.36) and more.
// The node is n1 in zone a.
func TestChoose(t *testing.T) {
	for _, tc := range []struct {
		name            string
		cluster, local  bool // the lists asked for
		zone            string
		endpoints       []string
		toCluster, toMe string
		any             bool
	}{
		{"zone hints", true, false, "a", []string{"10.1.0.1 n2 zone=a", "10.1.0.2 n2 zone=b", "10.1.0.3 n2 zone=c", "10.1.0.4 n2 zone=a"}, "1 4", "", true},
		{"hints are not for the policy Local", true, true, "a", []string{"10.1.0.1 n1 zone=a", "10.1.0.2 n1 zone=b", "10.1.0.3 n2 zone=b", "10.1.0.4 n2 zone=a"}, "1 4", "1 2", true},
		{"no zone known", true, false, "", []string{"10.1.0.1 n2 zone=a"}, "1", "", true},
		{"no hint for the zone", true, false, "b", []string{"10.1.0.1 n2 zone=a"}, "1", "", true},
		{"one endpoint without a hint", true, false, "a", []string{"10.1.0.1 n2 zone=a", "10.1.0.2 n2", "10.1.0.3 n2 zone=b"}, "1 2 3", "", true},
		{"an unready endpoint without a hint does not count", true, false, "a", []string{"10.1.0.1 n2 zone=a", "10.1.0.2 n2 notready", "10.1.0.3 n2 zone=b"}, "1", "", true},
		{"an unready endpoint of the zone does not count", true, false, "a", []string{"10.1.0.1 n2 zone=a notready", "10.1.0.3 n2 zone=b"}, "3", "", true},
		{"a hint for several zones", true, false, "a", []string{"10.1.0.1 n2 zone=b,a", "10.1.0.3 n2 zone=b"}, "1", "", true},
		{"node hints come first", true, false, "a", []string{"10.1.0.1 n1 zone=a node=n1", "10.1.0.2 n2 zone=a node=n2"}, "1", "", true},
		{"a node hint may name another node's endpoint", true, false, "a", []string{"10.1.0.1 n2 zone=a node=n1", "10.1.0.2 n1 zone=a node=n2"}, "1", "", true},
		{"no node hint for this node: the zone", true, false, "a", []string{"10.1.0.1 n3 zone=a node=n3", "10.1.0.2 n2 zone=b node=n2"}, "1", "", true},
		{"one without a node hint: the zone", true, false, "a", []string{"10.1.0.1 n1 zone=b node=n1", "10.1.0.2 n2 zone=a"}, "2", "", true},
		{"neither: all", true, false, "c", []string{"10.1.0.1 n3 zone=a node=n3", "10.1.0.2 n2 zone=b node=n2"}, "1 2", "", true},
		{"Local alone", false, true, "a", []string{"10.1.0.1 n1", "10.1.0.2 n2"}, "", "1", true},
		{"Local alone, none here", false, true, "a", []string{"10.1.0.2 n2"}, "", "", true},
		{"Local alone, one that leaves elsewhere", false, true, "a", []string{"10.1.0.2 n2 leaving"}, "", "", true},
		{"both, none here", true, true, "a", []string{"10.1.0.2 n2"}, "2", "", true},
		{"all unready", true, true, "a", []string{"10.1.0.1 n1 notready", "10.1.0.2 n2 notready"}, "", "", false},
		{"none", true, true, "a", nil, "", "", false},
		{"ready before leaving", true, true, "a", []string{"10.1.0.1 n1", "10.1.0.2 n1 leaving", "10.1.0.3 n2", "10.1.0.4 n2 leaving"}, "1 3", "1", true},
		{"all here leave", true, true, "a", []string{"10.1.0.1 n1 leaving", "10.1.0.2 n1 leaving", "10.1.0.3 n2"}, "3", "1 2", true},
		{"all leave", true, true, "a", []string{"10.1.0.1 n1 leaving", "10.1.0.3 n2 leaving"}, "1 3", "1", true},
		{"those that leave have no topology", true, false, "a", []string{"10.1.0.1 n1 leaving zone=a", "10.1.0.3 n2 leaving zone=b"}, "1 3", "", true},
		{"terminating and not serving is nothing", true, true, "a", []string{"10.1.0.1 n1 gone", "10.1.0.3 n2 gone"}, "", "", false},
		{"serving, not ready, not terminating is nothing", true, true, "a", []string{"10.1.0.1 n1 unready-serving"}, "", "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var es []cluster.Endpoint
			for _, text := range tc.endpoints {
				es = append(es, parseEndpoint(text))
			}
			of := &cluster.ServiceSlices{Slices: []*cluster.EndpointSlice{slice("web", "a", target("", cluster.TCP, 80), es...)}}
			got := choose(gather(of, tcp("", 80), false, "n1"), tc.cluster, tc.local, "n1", tc.zone)
			if c, l := lastOctets(got.Cluster), lastOctets(got.Local); c != tc.toCluster || l != tc.toMe || got.Any != tc.any {
				t.Errorf("cluster %q, local %q, any %v; want %q, %q, %v", c, l, got.Any, tc.toCluster, tc.toMe, tc.any)
			}
		})
	}
}

// An address in several slices, or of two pods, is one endpoint: rather one that
// stays, rather a ready one.
func TestGather_twice(t *testing.T) {
	for _, tc := range []struct{ a, b, want string }{
		{"10.1.0.1 n1 leaving", "10.1.0.1 n1", "ready"},
		{"10.1.0.1 n1 leaving", "10.1.0.1 n1 unready-serving", "none"},
		{"10.1.0.1 n1 notready", "10.1.0.1 n1", "ready"},
		{"10.1.0.1 n1 gone", "10.1.0.1 n1 leaving", "leaving"},
	} {
		for _, order := range [][2]string{{tc.a, tc.b}, {tc.b, tc.a}} {
			of := &cluster.ServiceSlices{Slices: []*cluster.EndpointSlice{
				slice("web", "a", target("", cluster.TCP, 80), parseEndpoint(order[0])), slice("web", "b", target("", cluster.TCP, 80), parseEndpoint(order[1]))}}
			all := gather(of, tcp("", 80), false, "n1")
			if len(all) != 1 {
				t.Fatalf("%v: %d endpoints", order, len(all))
			}
			got := "none"
			if all[0].Ready {
				got = "ready"
			} else if all[0].leaving() {
				got = "leaving"
			}
			if got != tc.want {
				t.Errorf("%v: %s, want %s", order, got, tc.want)
			}
		}
	}
}

// TestSilent: an endpoint of this node that does not answer is left out of all
// lists, so that flows to it are stale too, as long as there is another one.
func TestSilent(t *testing.T) {
	dns := cluster.Key{Namespace: "default", Name: "dns"}
	for _, tc := range []struct {
		name, silent    string
		local           bool
		endpoints       []string
		want, wantFlows string
	}{
		{"here, with hints for each node", "10.1.0.1", false, []string{"10.1.0.1 n1 node=n1", "10.1.0.2 n2 node=n2"}, "2", "2"},
		{"nobody else", "10.1.0.1", false, []string{"10.1.0.1 n1 node=n1"}, "1", "1"},
		{"nobody else is ready", "10.1.0.1", false, []string{"10.1.0.1 n1", "10.1.0.2 n2 notready"}, "1", "1"},
		{"another one here", "10.1.0.1", false, []string{"10.1.0.1 n1 node=n1", "10.1.0.3 n1 node=n1", "10.1.0.2 n2 node=n2"}, "3", "2 3"},
		{"of another node: not ours to say", "10.1.0.2", false, []string{"10.1.0.1 n1", "10.1.0.2 n2"}, "1 2", "1 2"},
		{"the policy Local has nobody else", "10.1.0.1", true, []string{"10.1.0.1 n1", "10.1.0.2 n2"}, "1", "1 2"},
		{"none", "", false, []string{"10.1.0.1 n1 node=n1", "10.1.0.2 n2 node=n2"}, "1", "1 2"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := cluster.NewBuilder()
			s := service("dns", "10.96.0.10", cluster.ServicePort{Protocol: cluster.UDP, Port: 53}, tcp("", 53))
			s.InternalLocal = tc.local
			b.SetService(s)
			var es []cluster.Endpoint
			for _, e := range tc.endpoints {
				es = append(es, parseEndpoint(e))
			}
			sl := slice("dns", "dns-1", target("", cluster.UDP, 1053), es...)
			sl.Ports = append(sl.Ports, target("", cluster.TCP, 1053))
			b.SetSlice(sl)
			c := self
			c.Silent.Service = dns
			if tc.silent != "" {
				c.Silent.Addrs = []netip.Addr{netip.MustParseAddr(tc.silent)}
			}
			for _, p := range CompileAll(b.Publish(), c).Services.Get(dns).Ports {
				es := p.Endpoints[0]
				list := es.Cluster
				if tc.local {
					list = es.Local
				}
				if got := lastOctets(list); got != tc.want {
					t.Errorf("%s: %q, want %q", p.Protocol, got, tc.want)
				}
				if got := lastOctets(es.Serving); p.Protocol == cluster.UDP && got != tc.wantFlows {
					t.Errorf("good flows: %q, want %q", got, tc.wantFlows)
				}
			}
		})
	}
}

func TestLocalReady(t *testing.T) {
	b := cluster.NewBuilder()
	b.SetService(service("dns", "10.96.0.10", cluster.ServicePort{Name: "dns", Protocol: cluster.UDP, Port: 53}, tcp("metrics", 9153)))
	b.SetSlice(slice("dns", "dns-1", target("dns", cluster.UDP, 1053), parseEndpoint("10.1.0.1 n1"), parseEndpoint("10.1.0.2 n2"), parseEndpoint("10.1.0.3 n1 notready"), parseEndpoint("10.1.0.4 n1 leaving")))
	s := b.Publish()
	got := LocalReady(s, cluster.Key{Namespace: "default", Name: "dns"}, cluster.UDP, 53, "n1")
	if len(got) != 1 || got[0].String() != "10.1.0.1:1053" {
		t.Errorf("%v", got)
	}
	if got := LocalReady(s, cluster.Key{Name: "gone"}, cluster.UDP, 53, "n1"); got != nil {
		t.Errorf("of no Service: %v", got)
	}
}
