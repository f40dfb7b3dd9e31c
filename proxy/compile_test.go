package proxy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/podlane/podlane/cluster"
)

var equalEntries = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty(),
}

// self is the node that tests compile for.
var self = Config{Node: "n1"}

func service(name, ip string, ports ...cluster.ServicePort) *cluster.Service {
	s := &cluster.Service{Key: cluster.Key{Namespace: "default", Name: name}, Type: cluster.ClusterIP, Ports: ports}
	for _, a := range strings.Fields(ip) {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(a))
	}
	return s
}

func slice(service, name string, port cluster.EndpointPort, endpoints ...cluster.Endpoint) *cluster.EndpointSlice {
	s := &cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: name}, Service: service, Ports: []cluster.EndpointPort{port}, Endpoints: endpoints}
	if len(endpoints) > 0 {
		s.IPv6 = endpoints[0].Address.Is6()
	}
	return s
}

func ready(ip string) cluster.Endpoint {
	return cluster.Endpoint{Address: netip.MustParseAddr(ip), Ready: true, Serving: true}
}

func ending(ip string, serving bool) cluster.Endpoint {
	return cluster.Endpoint{Address: netip.MustParseAddr(ip), Serving: serving, Terminating: true}
}

func tcp(name string, port uint16) cluster.ServicePort {
	return cluster.ServicePort{Name: name, Protocol: cluster.TCP, Port: port}
}

func target(name string, proto cluster.Protocol, port uint16) cluster.EndpointPort {
	return cluster.EndpointPort{Name: name, Protocol: proto, Port: port}
}

// lookups says where connections go: "PROTO ADDRESS" → verdict and backends.
func TestCompile_lookup(t *testing.T) {
	udp := cluster.ServicePort{Name: "dns", Protocol: cluster.UDP, Port: 53}
	tests := []struct {
		name     string
		services []*cluster.Service
		slices   []*cluster.EndpointSlice
		dst      string
		want     string
	}{
		{"two slices and a duplicate", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))},
			[]*cluster.EndpointSlice{slice("web", "b", target("", cluster.TCP, 8080), ready("10.1.0.2"), ready("10.1.0.3")), slice("web", "a", target("", cluster.TCP, 8080), ready("10.1.0.3"))},
			"TCP 10.96.0.1:80", "balance default/web: 10.1.0.2:8080 10.1.0.3:8080"},
		{"a named port resolves to several numbers", []*cluster.Service{service("web", "10.96.0.1", tcp("http", 80))},
			[]*cluster.EndpointSlice{slice("web", "a", target("http", cluster.TCP, 8080), ready("10.1.0.2")), slice("web", "b", target("http", cluster.TCP, 9090), ready("10.1.0.3"))},
			"TCP 10.96.0.1:80", "balance default/web:http: 10.1.0.2:8080 10.1.0.3:9090"},
		{"no endpoint is refused", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))}, nil,
			"TCP 10.96.0.1:80", "reject default/web:"},
		{"another port of a cluster IP is refused", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))}, nil,
			"TCP 10.96.0.1:81", "reject default/web:"},
		{"another address passes", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))}, nil,
			"TCP 10.96.0.2:80", "pass"},
		{"the other protocol is refused", []*cluster.Service{service("dns", "10.96.0.10", udp)},
			[]*cluster.EndpointSlice{slice("dns", "a", target("dns", cluster.UDP, 53), ready("10.1.0.2"))},
			"TCP 10.96.0.10:53", "reject default/dns:"},
		{"UDP", []*cluster.Service{service("dns", "10.96.0.10", udp)},
			[]*cluster.EndpointSlice{slice("dns", "a", target("dns", cluster.UDP, 53), ready("10.1.0.2"))},
			"UDP 10.96.0.10:53", "balance default/dns:dns: 10.1.0.2:53"},
		{"IPv6 has its own backends", []*cluster.Service{service("web", "10.96.0.1 fd00::1", tcp("", 80))},
			[]*cluster.EndpointSlice{slice("web", "a", target("", cluster.TCP, 80), ready("10.1.0.2")), slice("web", "b", target("", cluster.TCP, 80), ready("fd01::2"))},
			"TCP [fd00::1]:80", "balance default/web: [fd01::2]:80"},
		{"an ending pod serves when no other does", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))},
			[]*cluster.EndpointSlice{slice("web", "a", target("", cluster.TCP, 80), ending("10.1.0.2", true), ending("10.1.0.3", false))},
			"TCP 10.96.0.1:80", "balance default/web: 10.1.0.2:80"},
		{"but not beside a ready one", []*cluster.Service{service("web", "10.96.0.1", tcp("", 80))},
			[]*cluster.EndpointSlice{slice("web", "a", target("", cluster.TCP, 80), ending("10.1.0.2", true), ready("10.1.0.3"))},
			"TCP 10.96.0.1:80", "balance default/web: 10.1.0.3:80"},
		{"two Services, one frontend: the first by name", []*cluster.Service{service("b", "10.96.0.1", tcp("", 80)), service("a", "10.96.0.1", tcp("", 80))},
			[]*cluster.EndpointSlice{slice("a", "a", target("", cluster.TCP, 80), ready("10.1.0.2"))},
			"TCP 10.96.0.1:80", "balance default/a: 10.1.0.2:80 (not default/b)"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			b := cluster.NewBuilder()
			for _, s := range tc.services {
				b.SetService(s)
			}
			for _, s := range tc.slices {
				b.SetSlice(s)
			}
			if got := describe(CompileAll(b.Publish(), self), tc.dst); got != tc.want {
				t.Errorf("%s: got %q, want %q", tc.dst, got, tc.want)
			}
		})
	}
}

func describe(table *Table, dst string) string {
	proto, addr, _ := strings.Cut(dst, " ")
	r := table.Lookup(Query{Protocol: map[string]cluster.Protocol{"TCP": cluster.TCP, "UDP": cluster.UDP}[proto], Destination: netip.MustParseAddrPort(addr)})
	if r.Verdict == Pass {
		return "pass"
	}
	s := string(r.Verdict) + " " + r.Service.String() + ":" + r.Port
	if r.Port != "" {
		s += ":"
	}
	for _, b := range r.Backends {
		s += " " + b.String()
	}
	for _, k := range r.Shadowed {
		s += " (not " + k.String() + ")"
	}
	return s
}

func TestCompile_skips(t *testing.T) {
	for name, change := range map[string]func(*cluster.Service){
		"headless":       func(s *cluster.Service) { s.Headless = true },
		"external name":  func(s *cluster.Service) { s.Type = cluster.ExternalName },
		"other proxy":    func(s *cluster.Service) { s.ProxyName = "mesh" },
		"no cluster IPs": func(s *cluster.Service) { s.ClusterIPs = nil },
	} {
		b := cluster.NewBuilder()
		s := service("web", "10.96.0.1", tcp("", 80))
		change(s)
		b.SetService(s)
		if n := CompileAll(b.Publish(), self).Services.Len(); n != 0 {
			t.Errorf("%s: %d entries, want none", name, n)
		}
	}
}

// history makes random changes to a builder.
type history struct {
	*rand.Rand
	b *cluster.Builder
}

func (h history) change() {
	name := string(rune('a' + h.IntN(8)))
	k := cluster.Key{Namespace: "default", Name: name}
	switch h.IntN(12) {
	case 0:
		h.b.DeleteService(k)
	case 1, 2, 3:
		h.b.SetService(h.service(name))
	case 4:
		h.b.DeleteSlice(cluster.Key{Namespace: "default", Name: name + "-1"})
	case 5:
		h.node()
	case 6:
		cidr := cluster.Key{Name: string(rune('a' + h.IntN(2)))}
		h.b.SetServiceCIDR(&cluster.ServiceCIDR{Key: cidr, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96." + string(rune('0'+h.IntN(4))) + ".0/24")}})
		if h.IntN(3) == 0 {
			h.b.DeleteServiceCIDR(cidr.Name)
		}
	default:
		var es []cluster.Endpoint
		for range h.IntN(4) {
			e := ready("10.1.0." + string(rune('1'+h.IntN(9))))
			e.Ready, e.Terminating = h.IntN(3) > 0, h.IntN(2) == 0
			e.Node = "n" + string(rune('1'+h.IntN(2)))
			if h.IntN(2) == 0 {
				e.ZoneHints, e.NodeHints = []string{"z" + string(rune('1'+h.IntN(2)))}, []string{e.Node}
			}
			es = append(es, e)
		}
		h.b.SetSlice(slice(name, name+"-"+string(rune('1'+h.IntN(2))), target("", cluster.TCP, 80), es...))
	}
}

func (h history) service(name string) *cluster.Service {
	s := service(name, "10.96.0."+string(rune('1'+h.IntN(9)))+" fd00::1", tcp("", uint16(80+h.IntN(2))), tcp("b", 99))
	s.InternalLocal, s.ExternalLocal = h.IntN(3) == 0, h.IntN(2) == 0
	if h.IntN(2) == 0 {
		s.Ports[0].NodePort = uint16(30000 + h.IntN(3))
		s.ExternalIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}
		s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.2")}
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/" + string(rune('5'+h.IntN(4))))}
	}
	return s
}

func (h history) node() {
	n := &cluster.Node{Key: cluster.Key{Name: "n1"}, Zone: "z" + string(rune('1'+h.IntN(2)))}
	n.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2." + string(rune('1'+h.IntN(2))))}
	h.b.SetNode(n)
	if h.IntN(5) == 0 {
		h.b.DeleteNode("n1")
	}
}

// silent gives a node that found some endpoints of a Service silent, or none.
func (h history) silent() Config {
	c := self
	if h.IntN(3) > 0 {
		c.Silent.Service = cluster.Key{Namespace: "default", Name: string(rune('a' + h.IntN(8)))}
		for i := range h.IntN(3) {
			c.Silent.Addrs = append(c.Silent.Addrs, netip.MustParseAddr("10.1.0."+string(rune('1'+3*i+h.IntN(3)))))
		}
	}
	return c
}

// The incremental compile equals the whole one after every step of a random
// history, and an entry whose inputs did not change keeps its pointer.
func TestCompile_incrementalEqualsWhole(t *testing.T) {
	for seed := range uint64(50) {
		h := history{rand.New(rand.NewPCG(seed, 1)), cluster.NewBuilder()}
		table, last := &Table{}, &cluster.Snapshot{}
		for range 60 {
			for range 1 + h.IntN(3) {
				h.change()
			}
			now := h.b.Publish()
			self := h.silent()
			next := Compile(table, last, now, self)
			compare(t, seed, next, CompileAll(now, self))
			if again := Compile(next, now, now, self); again != next {
				t.Fatalf("seed %d: compiling the same Snapshot again made a new Table", seed)
			}
			table, last = next, now
		}
	}
}

func compare(t *testing.T, seed uint64, got, want *Table) {
	t.Helper()
	if !got.facts.equal(want.facts) || !slices.Equal(got.NodePorts, want.NodePorts) || !slices.Equal(got.ServiceCIDRs, want.ServiceCIDRs) {
		t.Fatalf("seed %d: whole %v %v %v, incremental %v %v %v", seed, want.facts, want.NodePorts, want.ServiceCIDRs, got.facts, got.NodePorts, got.ServiceCIDRs)
	}
	if diff := cmp.Diff(want.Services.Keys(), got.Services.Keys()); diff != "" {
		t.Fatalf("seed %d: Services (-whole +incremental):\n%s", seed, diff)
	}
	for k, e := range want.Services.All() {
		if diff := cmp.Diff(e, got.Services.Get(k), equalEntries); diff != "" {
			t.Fatalf("seed %d: %s (-whole +incremental):\n%s", seed, k, diff)
		}
	}
}

func BenchmarkCompile_oneEndpoint(b *testing.B) {
	for _, n := range []int{1000, 10000, 30000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			bld := cluster.NewBuilder()
			for i := range n {
				name := "svc-" + string(rune('a'+i%26)) + netip.AddrFrom4([4]byte{0, byte(i >> 16), byte(i >> 8), byte(i)}).String()
				ip := netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
				bld.SetService(service(name, ip.String(), tcp("", 80)))
				bld.SetSlice(slice(name, name, target("", cluster.TCP, 80), ready("10.1.0.1"), ready("10.1.0.2")))
			}
			last := bld.Publish()
			table := CompileAll(last, self)
			name := last.Services.Keys()[n/2].Name
			for i := 0; b.Loop(); i++ {
				bld.SetSlice(slice(name, name, target("", cluster.TCP, 80), ready("10.1.0.1"), ready("10.1.1."+string(rune('1'+i%9)))))
				now := bld.Publish()
				table, last = Compile(table, last, now, self), now
			}
		})
	}
}

// TestCompile_counted: endpoints are counted where the Service or the agent's own setting asks for it, and that is followed.
func TestCompile_counted(t *testing.T) {
	b := cluster.NewBuilder()
	for _, name := range []string{"annotated", "other", "web"} {
		s := service(name, "10.96.0.1", tcp("", 80))
		s.CountEndpoints = name == "annotated"
		b.SetService(s)
	}
	now := b.Publish()
	counted := func(t *Table) (names []string) {
		for _, e := range t.Services.All() {
			if e.Ports[0].Count {
				names = append(names, e.Key.Name)
			}
		}
		slices.Sort(names)
		return names
	}
	keys, err := ParseCounted([]string{"default/web", "default/none", "default/web", "other/other"})
	if err != nil {
		t.Fatal(err)
	}
	plain := CompileAll(now, self)
	if got := counted(plain); !slices.Equal(got, []string{"annotated"}) {
		t.Errorf("by the annotation: %v", got)
	}
	if got := counted(Compile(plain, now, now, Config{Node: "n1", Counted: keys})); !slices.Equal(got, []string{"annotated", "web"}) {
		t.Errorf("by the setting too: %v", got)
	}
	for _, bad := range []string{"web", "/web", "default/", "a/b/c", ""} {
		if _, err := ParseCounted([]string{bad}); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
