package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// world has a Service with every kind of frontend, an endpoint on the node n1 and
// two on others.
func world(change func(*cluster.Service, *cluster.EndpointSlice)) *Table {
	b := cluster.NewBuilder()
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}})
	b.SetServiceCIDR(&cluster.ServiceCIDR{Key: cluster.Key{Name: "kubernetes"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	s := service("web", "10.96.0.1", cluster.ServicePort{Protocol: cluster.TCP, Port: 80, NodePort: 30080})
	s.Type = cluster.LoadBalancer
	s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::cafe")}
	s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.2")}
	s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("10.1.0.0/16")}
	es := slice("web", "a", target("", cluster.TCP, 8080), parseEndpoint("10.1.0.1 n1"), parseEndpoint("10.1.0.2 n2"), parseEndpoint("10.1.0.3 n2"))
	if change != nil {
		change(s, es)
	}
	b.SetService(s)
	b.SetSlice(es)
	return CompileAll(b.Publish(), self)
}

var clients = map[string]Query{
	"pod":     {Client: LocalPod, Source: netip.MustParseAddr("10.1.0.9")},
	"host":    {Client: Host, Source: netip.MustParseAddr("192.0.2.1")},
	"remote":  {Client: RemotePod, Source: netip.MustParseAddr("10.1.1.9")},
	"outside": {Client: Outside, Source: netip.MustParseAddr("198.51.100.9")},
	"blocked": {Client: Outside, Source: netip.MustParseAddr("198.51.101.9")},
}

func meets(table *Table, client, to string) string {
	q := clients[client]
	q.Protocol, q.Destination = cluster.TCP, netip.MustParseAddrPort(to)
	r := table.Lookup(q)
	if r.Verdict != Balance {
		return string(r.Verdict)
	}
	text := lastOctets(r.Backends)
	if r.Masquerade {
		text += " masq"
	}
	return text
}

// TestLookup_frontends says for each kind of frontend and client what it meets.
// The columns are pod, host, remote, outside, blocked.
func TestLookup_frontends(t *testing.T) {
	const vip, external, lb, nodePort = "10.96.0.1:80", "203.0.113.1:80", "203.0.113.2:80", "192.0.2.1:30080"
	internalLocal := func(s *cluster.Service, _ *cluster.EndpointSlice) { s.InternalLocal = true }
	externalLocal := func(s *cluster.Service, _ *cluster.EndpointSlice) { s.ExternalLocal = true }
	away := func(s *cluster.Service, es *cluster.EndpointSlice) {
		s.InternalLocal, s.ExternalLocal = true, true
		es.Endpoints = es.Endpoints[1:]
	}
	none := func(s *cluster.Service, es *cluster.EndpointSlice) { s.ExternalLocal, es.Endpoints = true, nil }
	for _, tc := range []struct {
		name   string
		change func(*cluster.Service, *cluster.EndpointSlice)
		to     string
		want   [5]string
	}{
		{"cluster IP", nil, vip, [5]string{"1 2 3", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq"}},
		{"external IP", nil, external, [5]string{"1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq"}},
		{"load balancer, source ranges", nil, lb, [5]string{"1 2 3 masq", "drop", "1 2 3 masq", "1 2 3 masq", "drop"}},
		{"node port", nil, nodePort, [5]string{"1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq"}},
		{"node port, another node's", nil, "192.0.2.2:30080", [5]string{"pass", "pass", "pass", "pass", "pass"}},
		{"node port, no such", nil, "192.0.2.1:30081", [5]string{"pass", "pass", "pass", "pass", "pass"}},
		{"closed port of the cluster IP", nil, "10.96.0.1:81", [5]string{"reject", "reject", "reject", "reject", "reject"}},
		{"unallocated", nil, "10.96.0.2:80", [5]string{"drop", "drop", "drop", "drop", "drop"}},
		{"closed port of the external IP", nil, "203.0.113.1:81", [5]string{"pass", "pass", "pass", "pass", "pass"}},
		{"external IP of a family without a cluster IP", nil, "[2001:db8::cafe]:80", [5]string{"pass", "pass", "pass", "pass", "pass"}},

		{"internal Local", internalLocal, vip, [5]string{"1", "1 masq", "1 masq", "1 masq", "1 masq"}},
		{"internal Local does not concern the outside", internalLocal, external, [5]string{"1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq"}},
		{"external Local", externalLocal, external, [5]string{"1 2 3", "1 2 3 masq", "1", "1", "1"}},
		{"external Local, node port", externalLocal, nodePort, [5]string{"1 2 3", "1 2 3 masq", "1", "1", "1"}},
		{"external Local, load balancer", externalLocal, lb, [5]string{"1 2 3", "drop", "1", "1", "drop"}},
		{"external Local does not concern the inside", externalLocal, vip, [5]string{"1 2 3", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq", "1 2 3 masq"}},

		{"no endpoint here, cluster IP", away, vip, [5]string{"drop", "drop", "drop", "drop", "drop"}},
		{"no endpoint here, external IP", away, external, [5]string{"2 3", "2 3 masq", "drop", "drop", "drop"}},
		{"no endpoint here, node port", away, nodePort, [5]string{"2 3", "2 3 masq", "drop", "drop", "drop"}},
		{"no endpoint, cluster IP", none, vip, [5]string{"reject", "reject", "reject", "reject", "reject"}},
		{"no endpoint, node port", none, nodePort, [5]string{"reject", "reject", "reject", "reject", "reject"}},
		{"no endpoint, load balancer: ranges come first", none, lb, [5]string{"reject", "drop", "reject", "reject", "drop"}},
	} {
		table := world(tc.change)
		for i, client := range []string{"pod", "host", "remote", "outside", "blocked"} {
			if got := meets(table, client, tc.to); got != tc.want[i] {
				t.Errorf("%s: %s meets %q, want %q", tc.name, client, got, tc.want[i])
			}
		}
	}
}

// Where the node is in a source range, so are the load balancer's own addresses.
func TestLookup_sourcesWithNode(t *testing.T) {
	table := world(func(s *cluster.Service, _ *cluster.EndpointSlice) {
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	for source, want := range map[string]Verdict{"192.0.2.7": Balance, "203.0.113.2": Balance, "203.0.113.1": Drop} {
		q := Query{Client: Host, Source: netip.MustParseAddr(source), Protocol: cluster.TCP, Destination: netip.MustParseAddrPort("203.0.113.2:80")}
		if r := table.Lookup(q); r.Verdict != want {
			t.Errorf("%s: %s (%s), want %s", source, r.Verdict, r.Reason, want)
		}
	}
}

func TestLookup_sourceRangeOfAll(t *testing.T) {
	table := world(func(s *cluster.Service, _ *cluster.EndpointSlice) {
		s.SourceRanges = append(s.SourceRanges, netip.MustParsePrefix("0.0.0.0/0"))
	})
	if got := meets(table, "blocked", "203.0.113.2:80"); got != "1 2 3 masq" {
		t.Error(got)
	}
}

func TestLookup_hairpin(t *testing.T) {
	q := Query{Client: LocalPod, Source: netip.MustParseAddr("10.1.0.1"), Protocol: cluster.TCP, Destination: netip.MustParseAddrPort("10.96.0.1:80")}
	r := world(nil).Lookup(q)
	for _, b := range r.Backends {
		if got, why := r.MasqueradeTo(b); got != (b.Addr() == q.Source) || why == "" {
			t.Errorf("to %s: masquerade %v, %s", b, got, why)
		}
	}
}

// With masquerade-all cluster IPs masquerade everyone; other frontends are as ever.
func TestLookup_masqueradeAll(t *testing.T) {
	b := cluster.NewBuilder()
	b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	s := service("web", "10.96.0.1", cluster.ServicePort{Protocol: cluster.TCP, Port: 80, NodePort: 30080})
	s.ExternalLocal = true
	b.SetService(s)
	b.SetSlice(slice("web", "a", target("", cluster.TCP, 8080), parseEndpoint("10.1.0.1 n1")))
	for all, want := range map[bool][2]string{false: {"1", "1"}, true: {"1 masq", "1"}} {
		table := CompileAll(b.Publish(), Config{Node: "n1", MasqueradeAll: all})
		if got := [2]string{meets(table, "pod", "10.96.0.1:80"), meets(table, "outside", "192.0.2.1:30080")}; got != want {
			t.Errorf("masquerade-all %v: a pod to the cluster IP and a client outside to the node port meet %q, want %q", all, got, want)
		}
	}
}

func TestLookup_nodePortAddresses(t *testing.T) {
	for _, tc := range []struct {
		addresses string
		to        string
		want      Verdict
	}{
		{"", "192.0.2.1:30080", Balance},
		{"", "172.16.0.1:30080", Pass},
		{"172.16.0.0/12", "172.16.0.1:30080", Balance},
		{"172.16.0.0/12", "192.0.2.1:30080", Pass},
		{"0.0.0.0/0", "172.16.0.1:30080", Balance},
		{"0.0.0.0/0", "127.0.0.1:30080", Pass},
		{"::/0", "172.16.0.1:30080", Balance},
	} {
		b := cluster.NewBuilder()
		b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
		b.SetService(service("web", "10.96.0.1", cluster.ServicePort{Protocol: cluster.TCP, Port: 80, NodePort: 30080}))
		b.SetSlice(slice("web", "a", target("", cluster.TCP, 8080), parseEndpoint("10.1.0.1 n1")))
		c := self
		for _, p := range strings.Fields(tc.addresses) {
			c.NodePortAddresses = append(c.NodePortAddresses, netip.MustParsePrefix(p))
		}
		r := CompileAll(b.Publish(), c).Lookup(Query{Client: Outside, Protocol: cluster.TCP, Destination: netip.MustParseAddrPort(tc.to), ToNode: true})
		if r.Verdict != tc.want {
			t.Errorf("%q, %s: %s (%s), want %s", tc.addresses, tc.to, r.Verdict, r.Reason, tc.want)
		}
	}
}

// What the entries depend on beside their objects is followed at once.
func TestCompile_facts(t *testing.T) {
	b := cluster.NewBuilder()
	node := func(zone, addr string) {
		b.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Zone: zone, Addresses: []netip.Addr{netip.MustParseAddr(addr)}})
	}
	node("a", "192.0.2.1")
	b.SetService(service("web", "10.96.0.1", cluster.ServicePort{Protocol: cluster.TCP, Port: 80, NodePort: 30080}))
	b.SetService(service("other", "10.96.0.2", tcp("", 80)))
	b.SetSlice(slice("web", "a", target("", cluster.TCP, 8080), parseEndpoint("10.1.0.1 n2 zone=a"), parseEndpoint("10.1.0.2 n2 zone=b")))
	last := b.Publish()
	table := CompileAll(last, self)
	step := func(what string) *Table {
		now := b.Publish()
		next := Compile(table, last, now, self)
		compare(t, 0, next, CompileAll(now, self))
		if next == table {
			t.Errorf("%s: the same Table", what)
		}
		other := cluster.Key{Namespace: "default", Name: "other"}
		if next.Services.Get(other) != table.Services.Get(other) {
			t.Errorf("%s: a Service that it does not concern has another entry", what)
		}
		last, table = now, next
		return next
	}
	if got := meets(table, "pod", "10.96.0.1:80"); got != "1" {
		t.Errorf("zone a: %s", got)
	}
	node("b", "192.0.2.1")
	if got := meets(step("zone"), "pod", "10.96.0.1:80"); got != "2" {
		t.Errorf("zone b: %s", got)
	}
	node("b", "192.0.2.2")
	if table := step("address"); meets(table, "outside", "192.0.2.2:30080") != "2 masq" || meets(table, "outside", "192.0.2.1:30080") != "pass" {
		t.Errorf("node ports at %v", table.NodePorts)
	}
	b.SetServiceCIDR(&cluster.ServiceCIDR{Key: cluster.Key{Name: "k"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}})
	if got := meets(step("CIDR"), "pod", "10.96.9.9:80"); got != "drop" {
		t.Errorf("CIDR: %s", got)
	}
}

func TestCompile_localReady(t *testing.T) {
	b := cluster.NewBuilder()
	s := service("web", "10.96.0.1", tcp("a", 80), tcp("b", 81))
	s.Type, s.ExternalLocal, s.HealthCheckNodePort = cluster.LoadBalancer, true, 32000
	b.SetService(s)
	for i, port := range []string{"a", "b"} {
		b.SetSlice(slice("web", fmt.Sprint("s", i), target(port, cluster.TCP, uint16(8080+i)), parseEndpoint("10.1.0.1 n1"), parseEndpoint("10.1.0.2 n1 leaving"), parseEndpoint("10.1.0.3 n2")))
	}
	e := CompileAll(b.Publish(), self).Services.Get(s.Key)
	if e.HealthCheckNodePort != 32000 || e.LocalReady != [2]int{1, 0} {
		t.Errorf("%d, %v", e.HealthCheckNodePort, e.LocalReady)
	}
}

// What goes to an endpoint with hostNetwork on the node itself does not leave the
// node, and so is not masqueraded.
func TestLookup_endpointIsTheNode(t *testing.T) {
	table := world(func(_ *cluster.Service, es *cluster.EndpointSlice) {
		es.Endpoints = append(es.Endpoints, parseEndpoint("192.0.2.1 n1"))
	})
	q := clients["outside"]
	q.Protocol, q.Destination = cluster.TCP, netip.MustParseAddrPort("192.0.2.1:30080")
	r := table.Lookup(q)
	if len(r.Backends) != 4 {
		t.Fatalf("%v, want four endpoints", r.Backends)
	}
	for _, b := range r.Backends {
		if got, why := r.MasqueradeTo(b); got == (b.Addr() == netip.MustParseAddr("192.0.2.1")) {
			t.Errorf("%s: masqueraded: %v, %s", b, got, why)
		}
	}
}
