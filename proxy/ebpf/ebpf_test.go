package ebpf_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/ebpf"
)

// world is a Snapshot in the making.
type world struct {
	*cluster.Builder
	old   *cluster.Snapshot
	table *proxy.Table
}

func newWorld() *world {
	w := &world{cluster.NewBuilder(), &cluster.Snapshot{}, &proxy.Table{}}
	w.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}})
	return w
}

func (w *world) compile() *proxy.Table {
	now := w.Publish()
	w.table, w.old = proxy.Compile(w.table, w.old, now, proxy.Config{Node: "n1"}), now
	return w.table
}

func service(name string, change func(*cluster.Service), ips ...string) *cluster.Service {
	s := &cluster.Service{Key: cluster.Key{Namespace: "default", Name: name}, Type: cluster.ClusterIP}
	s.Ports = []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}, {Name: "dns", Protocol: cluster.UDP, Port: 80}}
	for _, ip := range ips {
		s.ClusterIPs = append(s.ClusterIPs, netip.MustParseAddr(ip))
	}
	change(s)
	return s
}

// slice has its endpoints on n1, but for those written with a '!'.
func slice(of, ends string) *cluster.EndpointSlice {
	s := &cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: of}, Service: of}
	s.Ports = []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 8080}, {Name: "dns", Protocol: cluster.UDP, Port: 5353}}
	for _, e := range strings.Fields(ends) {
		ip, far := strings.CutPrefix(e, "!")
		one := cluster.Endpoint{Address: netip.MustParseAddr(ip), Ready: true, Serving: true, Node: "n1"}
		if far {
			one.Node = "n2"
		}
		s.IPv6 = one.Address.Is6()
		s.Endpoints = append(s.Endpoints, one)
	}
	return s
}

func text(a *ebpf.Applied) string {
	var lines []string
	a.Each(func(at ebpf.Frontend, s *ebpf.Service) { lines = append(lines, fmt.Sprint(at, s.Backends)) })
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}

// What is translated, and what is left to the rules.
func TestDiff(t *testing.T) {
	plain := func(*cluster.Service) {}
	for name, tc := range map[string]struct {
		services []*cluster.Service
		ends     map[string]string
		want     string
	}{
		"cluster IP, TCP alone": {[]*cluster.Service{service("web", plain, "10.96.0.1")}, map[string]string{"web": "10.1.0.1 !10.2.0.1"},
			"10.96.0.1:80 [10.1.0.1:8080 10.2.0.1:8080]"},
		"both families": {[]*cluster.Service{service("web", plain, "10.96.0.1", "fd00:96::1")}, map[string]string{"web": "fd00:1::1"},
			"[fd00:96::1]:80 [[fd00:1::1]:8080]"},
		"no endpoint": {[]*cluster.Service{service("web", plain, "10.96.0.1")}, nil, ""},
		"affinity": {[]*cluster.Service{service("web", func(s *cluster.Service) { s.Affinity = 60 }, "10.96.0.1")},
			map[string]string{"web": "10.1.0.1"}, ""},
		"internal traffic policy Local": {[]*cluster.Service{service("web", func(s *cluster.Service) { s.InternalLocal = true }, "10.96.0.1")},
			map[string]string{"web": "10.1.0.1 !10.2.0.1"}, "10.96.0.1:80 [10.1.0.1:8080]"},
		"Local with none here": {[]*cluster.Service{service("web", func(s *cluster.Service) { s.InternalLocal = true }, "10.96.0.1")},
			map[string]string{"web": "!10.2.0.1"}, ""},
		"other kinds of frontends": {[]*cluster.Service{service("web", func(s *cluster.Service) {
			s.Type, s.Ports[0].NodePort = cluster.LoadBalancer, 30080
			s.ExternalIPs, s.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr("203.0.113.1")}, []netip.Addr{netip.MustParseAddr("203.0.113.2")}
		}, "10.96.0.1")}, map[string]string{"web": "10.1.0.1"}, "10.96.0.1:80 [10.1.0.1:8080]"},
		"the first by name has a frontend": {[]*cluster.Service{service("b", plain, "10.96.0.1"), service("a", plain, "10.96.0.1")},
			map[string]string{"a": "10.1.0.1", "b": "10.1.0.2"}, "10.96.0.1:80 [10.1.0.1:8080]"},
		"the first has it as another kind": {[]*cluster.Service{service("b", plain, "10.96.0.1"), service("a", func(s *cluster.Service) {
			s.ExternalIPs = []netip.Addr{netip.MustParseAddr("10.96.0.1")}
		}, "10.96.0.2")}, map[string]string{"a": "10.1.0.1", "b": "10.1.0.2"}, "10.96.0.2:80 [10.1.0.1:8080]"},
		"an address of the node's own": {[]*cluster.Service{service("web", plain, "10.96.0.53")}, map[string]string{"web": "10.1.0.1"}, ""},
	} {
		w := newWorld()
		for _, s := range tc.services {
			w.SetService(s)
		}
		for of, ends := range tc.ends {
			w.SetSlice(slice(of, ends))
		}
		applied, _ := ebpf.Diff(&ebpf.Applied{}, w.compile(), []netip.Addr{netip.MustParseAddr("10.96.0.53")})
		if got := text(applied); got != tc.want {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
}

// Where all connections to cluster IPs are masqueraded, the rules do it.
func TestDiff_masqueradeAll(t *testing.T) {
	w := newWorld()
	w.SetService(service("web", func(*cluster.Service) {}, "10.96.0.1"))
	w.SetSlice(slice("web", "10.1.0.1 !10.2.0.1"))
	now, pod := w.Publish(), netip.MustParseAddr("10.1.0.9")
	for all, want := range map[bool]string{false: "10.96.0.1:80 [10.1.0.1:8080 10.2.0.1:8080]", true: ""} {
		table := proxy.CompileAll(now, proxy.Config{Node: "n1", MasqueradeAll: all})
		applied, _ := ebpf.Diff(&ebpf.Applied{}, table, nil)
		if got := text(applied); got != want {
			t.Errorf("masquerade-all %v: %q, want %q", all, got, want)
		}
		q := proxy.Query{Client: proxy.LocalPod, Source: pod, Protocol: cluster.TCP, Destination: netip.MustParseAddrPort("10.96.0.1:80")}
		if got := ebpf.NewClients([]netip.Addr{pod}, nil).Translates(pod, cluster.TCP, table.Lookup(q)); got == all {
			t.Errorf("masquerade-all %v: translated at the socket %v", all, got)
		}
	}
}

// An endpoint that stays keeps its slot, and what changes is as little as can be.
func TestDiff_slots(t *testing.T) {
	w := newWorld()
	w.SetService(service("web", func(*cluster.Service) {}, "10.96.0.1"))
	w.SetService(service("api", func(*cluster.Service) {}, "10.96.0.2"))
	w.SetSlice(slice("api", "10.1.0.9"))
	a := &ebpf.Applied{}
	for _, step := range []struct{ ends, want string }{
		{"10.1.0.1 10.1.0.2 10.1.0.3 10.1.0.4", "[1 2 3 4]"},
		{"10.1.0.1 10.1.0.3 10.1.0.4", "[1 4 3]"},
		{"10.1.0.1 10.1.0.3 10.1.0.4 10.1.0.5", "[1 4 3 5]"},
		{"10.1.0.3 10.1.0.6 10.1.0.5", "[6 5 3]"},
		{"10.1.0.7 10.1.0.8", "[7 8]"},
		{"", "[]"},
	} {
		w.SetSlice(slice("web", step.ends))
		next, changes := ebpf.Diff(a, w.compile(), nil)
		got := []byte{}
		for _, c := range changes {
			if c.Frontend.Addr() != netip.MustParseAddr("10.96.0.1") {
				continue
			}
			for _, b := range c.New.Backends {
				got = append(got, b.Addr().AsSlice()[3])
			}
		}
		if fmt.Sprint(got) != step.want || a.Len() > 0 && len(changes) != 1 {
			t.Errorf("%s: %v, %d changes, want %s", step.ends, got, len(changes), step.want)
		}
		a = next
	}
}

// Any history gives what its end gives from nothing, whether it was followed or
// read back; and never is a change wanted twice.
func TestDiff_history(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	w := newWorld()
	a, have := &ebpf.Applied{}, map[ebpf.Frontend]*ebpf.Service{}
	for step := range 2000 {
		name := string(rune('a' + r.IntN(6)))
		switch r.IntN(4) {
		case 0:
			w.DeleteService(cluster.Key{Namespace: "default", Name: name})
		case 1:
			w.SetService(service(name, func(s *cluster.Service) {
				s.Affinity, s.InternalLocal, s.CountEndpoints = uint32(r.IntN(4)/3), r.IntN(4) == 0, r.IntN(2) == 0
			}, fmt.Sprintf("10.96.0.%d", 1+r.IntN(4))))
		default:
			var ends []string
			for i := range r.IntN(5) {
				ends = append(ends, fmt.Sprintf("10.1.0.%d", 1+i*2+r.IntN(2)))
			}
			w.SetSlice(slice(name, strings.Join(ends, " ")))
		}
		var own []netip.Addr
		if step/100%3 == 1 {
			own = []netip.Addr{netip.MustParseAddr("10.96.0.2")}
		}
		table := w.compile()
		if step%97 == 0 {
			a = ebpf.Adopt(have)
		}
		var changes []ebpf.Change
		a, changes = ebpf.Diff(a, table, own)
		for _, c := range changes {
			if old := have[c.Frontend]; fmt.Sprint(old) != fmt.Sprint(c.Old) {
				t.Fatalf("step %d: %s is %v, and the change is from %v", step, c.Frontend, old, c.Old)
			}
			have[c.Frontend] = c.New
			if c.New == nil {
				delete(have, c.Frontend)
			}
		}
		whole, _ := ebpf.Diff(&ebpf.Applied{}, proxy.CompileAll(w.old, proxy.Config{Node: "n1"}), own)
		if got, want := sorted(a), sorted(whole); got != want {
			t.Fatalf("step %d:\n%s\nwant\n%s", step, got, want)
		}
		if _, again := ebpf.Diff(a, table, own); len(again) != 0 {
			t.Fatalf("step %d: again %v", step, again)
		}
	}
}

// sorted is text without the order of slots.
func sorted(a *ebpf.Applied) string {
	var lines []string
	a.Each(func(at ebpf.Frontend, s *ebpf.Service) {
		ends := slices.Clone(s.Backends)
		slices.SortFunc(ends, netip.AddrPort.Compare)
		lines = append(lines, fmt.Sprint(at, ends, s.Count))
	})
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
