package apply

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/proxy"
)

// The addresses of a world's Service, and those it is not to be reached at.
func (w *world) addr(v4, v6 string) netip.Addr {
	if w.v6 {
		return netip.MustParseAddr(v6)
	}
	return netip.MustParseAddr(v4)
}

func (w *world) clusterIP(n byte) netip.Addr { return w.vip(n, 1).Addr() }
func (w *world) externalIP() netip.Addr      { return w.addr("203.0.113.1", "2001:db8:1::1") }
func (w *world) lbIP() netip.Addr            { return w.addr("203.0.113.2", "2001:db8:1::2") }

// snapshot builds the cluster of a world: this node is n1, with pods a and b.
type snapshot struct {
	*cluster.Builder
	w *world
}

func (w *world) cluster() snapshot {
	s := snapshot{cluster.NewBuilder(), w}
	s.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Zone: "z1", Addresses: []netip.Addr{w.node.addr}})
	cidr := netip.PrefixFrom(w.clusterIP(0), w.clusterIP(0).BitLen()-8)
	s.SetServiceCIDR(&cluster.ServiceCIDR{Key: cluster.Key{Name: "kubernetes"}, CIDRs: []netip.Prefix{cidr}})
	return s
}

func (s snapshot) table() *proxy.Table {
	return proxy.CompileAll(s.Publish(), proxy.Config{Node: "n1"})
}

// service adds a Service with frontends of all kinds, changed by change, over TCP
// and UDP.
func (s snapshot) service(change func(*cluster.Service), endpoints ...cluster.Endpoint) {
	svc := &cluster.Service{Key: cluster.Key{Namespace: "default", Name: "web"}, Type: cluster.LoadBalancer,
		ClusterIPs: []netip.Addr{s.w.clusterIP(1)}, ExternalIPs: []netip.Addr{s.w.externalIP()}, LoadBalancerIPs: []netip.Addr{s.w.lbIP()},
		Ports: []cluster.ServicePort{{Name: "t", Protocol: cluster.TCP, Port: 80, NodePort: 30080}, {Name: "u", Protocol: cluster.UDP, Port: 80, NodePort: 30080}}}
	if change != nil {
		change(svc)
	}
	s.SetService(svc)
	s.SetSlice(&cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: "web-1"}, Service: "web", IPv6: s.w.v6,
		Ports:     []cluster.EndpointPort{{Name: "t", Protocol: cluster.TCP, Port: 8080}, {Name: "u", Protocol: cluster.UDP, Port: 8080}},
		Endpoints: endpoints})
}

// at is a ready endpoint in a place.
func at(p place) cluster.Endpoint {
	node := "n1"
	if p.name == "r" {
		node = "n2"
	}
	return cluster.Endpoint{Address: p.addr, Node: node, Ready: true, Serving: true}
}

func leaving(e cluster.Endpoint) cluster.Endpoint {
	e.Ready, e.Terminating = false, true
	return e
}

func hinted(e cluster.Endpoint, node, zone string) cluster.Endpoint {
	e.NodeHints, e.ZoneHints = []string{node}, []string{zone}
	return e
}

// clients are the places that ask, and what they are to the node.
func (w *world) clients() map[proxy.Client]place {
	return map[proxy.Client]place{proxy.LocalPod: w.a, proxy.Host: w.node, proxy.RemotePod: w.r, proxy.Outside: w.outside}
}

// dialFor is dial with a time limit.
func (w *world) dialFor(from place, network string, to netip.AddrPort, limit time.Duration) (net.Conn, error) {
	var c net.Conn
	var err error
	nettest.Do(w.t, from.ns, func() {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, to.String())
	})
	return c, err
}

// meet makes connections until each of the expected backends was met, at least
// three and at most a hundred, and says what they met: "drop", "reject", or the
// servers with "masq" where they saw another source than the client's. Where want
// is "drop", it does not wait for long.
func (w *world) meet(from place, network string, to netip.AddrPort, want string) string {
	w.t.Helper()
	met := map[string]bool{}
	servers := map[string]bool{}
	limit := 3 * time.Second
	if want == "drop" || want == "reject" && network == "udp" {
		limit = 150 * time.Millisecond
	}
	expected := strings.Count(want, ",") + 1
	for i := 0; i < 3 || i < 100 && len(servers) < expected || i < 20 && want == "reject" && !met[want]; i++ {
		what := w.once(from, network, to, limit)
		met[what] = true
		server, _, _ := strings.Cut(what, " ")
		servers[server] = true
		if what == "drop" && network == "udp" && want == "reject" && i < 20 {
			time.Sleep(50 * time.Millisecond) // the kernel does not send every ICMP error
		} else if what == "drop" {
			break // it takes long
		}
	}
	if network == "udp" && met["reject"] {
		delete(met, "drop")
	}
	var all []string
	for m := range met {
		all = append(all, m)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func (w *world) once(from place, network string, to netip.AddrPort, limit time.Duration) string {
	w.t.Helper()
	c, err := w.dialFor(from, network, to, limit)
	if err == nil {
		defer c.Close()
		var server string
		var source netip.Addr
		if server, source, err = questionFor(c, limit); err == nil {
			// A pod that meets itself is masqueraded always.
			if source != from.addr && server != from.name {
				return server + " masq"
			}
			return server
		}
	}
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "reject"
	case errors.Is(err, syscall.EPERM):
		return "not permitted" // what a sender on the node itself is told of both
	case errors.As(err, &timeout) && timeout.Timeout():
		return "drop"
	}
	return err.Error()
}

// expect is what Lookup says, in the words of meet.
func (w *world) expect(tb *proxy.Table, c proxy.Client, network string, to netip.AddrPort) string {
	q := proxy.Query{Client: c, Source: w.clients()[c].addr, Protocol: cluster.TCP, Destination: to}
	if network == "udp" {
		q.Protocol = cluster.UDP
	}
	r := tb.Lookup(q)
	if r.Verdict != proxy.Balance {
		return string(r.Verdict)
	}
	var all []string
	for _, b := range r.Backends {
		name := map[netip.Addr]string{w.a.addr: "a", w.b.addr: "b", w.r.addr: "r", w.node.addr: "node"}[b.Addr()]
		if r.Masquerade && name != w.clients()[c].name {
			name += " masq"
		}
		all = append(all, name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// TestBehaviour sends packets from everywhere to every kind of frontend, in each
// state that decides where they may go, and compares what they meet with Lookup.
func TestBehaviour(t *testing.T) {
	eachBackend(t, func(t *testing.T, w *world, ap proxier) {
		for _, p := range []place{w.a, w.b, w.r} {
			w.server(p, 8080)
		}
		sysctl(t, "ipv4/icmp_ratelimit=0")
		sysctl(t, "ipv6/icmp/ratelimit=0")
		local := func(s *cluster.Service) { s.InternalLocal, s.ExternalLocal = true, true }
		ranges := func(of ...netip.Addr) func(*cluster.Service) {
			return func(s *cluster.Service) {
				for _, a := range of {
					s.SourceRanges = append(s.SourceRanges, netip.PrefixFrom(a, a.BitLen()))
				}
			}
		}
		a, b, r := at(w.a), at(w.b), at(w.r)
		const masqueradeAll = "masquerade all, policy Local"
		for _, tc := range []struct {
			name      string
			change    func(*cluster.Service)
			endpoints []cluster.Endpoint
		}{
			{"policy Cluster", nil, []cluster.Endpoint{a, b, r}},
			{"policy Local", local, []cluster.Endpoint{a, b, r}},
			{"policy Local, none here", local, []cluster.Endpoint{r}},
			{"none", local, nil},
			{"all here leave", local, []cluster.Endpoint{leaving(b), r}},
			{"all leave", nil, []cluster.Endpoint{leaving(b), leaving(r)}},
			{"source ranges", ranges(w.outside.addr), []cluster.Endpoint{b, r}},
			{"source ranges, policy Local", func(s *cluster.Service) { local(s); ranges(w.outside.addr, w.a.addr)(s) }, []cluster.Endpoint{b, r}},
			{"source ranges, no endpoint", ranges(w.a.addr), nil},
			{"this zone", nil, []cluster.Endpoint{hinted(b, "n3", "z1"), hinted(r, "n2", "z2")}},
			{"this node", nil, []cluster.Endpoint{hinted(b, "n1", "z2"), hinted(r, "n2", "z1")}},
			{"affinity", func(s *cluster.Service) { s.Affinity = 1000 }, []cluster.Endpoint{b}},
			{"affinity, policy Local", func(s *cluster.Service) { local(s); s.Affinity = 1000 }, []cluster.Endpoint{b}},
			{"affinity, policy Local, none here", func(s *cluster.Service) { local(s); s.Affinity = 1000 }, []cluster.Endpoint{r}},
			{masqueradeAll, local, []cluster.Endpoint{b, r}},
			{"of another proxy", func(s *cluster.Service) { s.ProxyName = "mesh" }, []cluster.Endpoint{b}},
		} {
			s := w.cluster()
			s.service(tc.change, tc.endpoints...)
			tb := proxy.CompileAll(s.Publish(), proxy.Config{Node: "n1", MasqueradeAll: tc.name == masqueradeAll})
			apply(t, ap, tb, w.pods())
			forgetFlows(t)
			for _, network := range []string{"tcp", "udp"} {
				for _, to := range []netip.AddrPort{
					netip.AddrPortFrom(w.clusterIP(1), 80), netip.AddrPortFrom(w.externalIP(), 80), netip.AddrPortFrom(w.lbIP(), 80),
					netip.AddrPortFrom(w.node.addr, 30080),
				} {
					for c, from := range w.clients() {
						want := w.expect(tb, c, network, to)
						if want == "pass" {
							continue // what the rest of the network does with it
						}
						if c == proxy.Host && network == "udp" && (want == "drop" || want == "reject") {
							want = "not permitted"
						}
						if got := w.meet(from, network, to, want); got != want {
							t.Errorf("%s: %s from %s to %s meets %q, want %q", tc.name, network, c, to, got, want)
						}
					}
				}
			}
		}
	})
}

// TestBehaviour_noFrontend is about addresses that belong to Services, but not
// with this port, and those that belong to none.
func TestBehaviour_noFrontend(t *testing.T) {
	eachBackend(t, func(t *testing.T, w *world, ap proxier) {
		w.server(w.a, 8080)
		w.server(w.outside, 8080)
		sysctl(t, "ipv4/icmp_ratelimit=0")
		sysctl(t, "ipv6/icmp/ratelimit=0")
		s := w.cluster()
		s.service(nil, at(w.a))
		apply(t, ap, s.table(), w.pods())
		for _, tc := range []struct {
			name string
			to   netip.AddrPort
			want string
		}{
			{"closed port of a cluster IP", netip.AddrPortFrom(w.clusterIP(1), 81), "reject"},
			{"unallocated cluster IP", netip.AddrPortFrom(w.clusterIP(9), 80), "drop"},
			{"no such NodePort", netip.AddrPortFrom(w.node.addr, 30081), "reject"}, // by the node itself
			{"a host of no cluster", netip.AddrPortFrom(w.outside.addr, 8080), "o"},
		} {
			for _, network := range []string{"tcp", "udp"} {
				for _, from := range []place{w.a, w.node} {
					if network == "udp" && from.name == "node" && tc.want != "o" {
						continue // the node's own sender is not permitted to
					}
					if got := w.meet(from, network, tc.to, tc.want); got != tc.want {
						t.Errorf("%s: %s from %s meets %q, want %q", tc.name, network, from.name, got, tc.want)
					}
				}
			}
		}
	})
}

// TestNodePortAddresses asks at a node's primary address, at another of its
// addresses and at loopback, for each setting.
func TestNodePortAddresses(t *testing.T) {
	eachBackend(t, func(t *testing.T, w *world, ap proxier) {
		w.server(w.a, 8080)
		second, loopback := w.addr("172.16.0.1", "fd00:172::1"), w.addr("127.0.0.1", "::1")
		nettest.Run(t, "ip", "addr", "add", netip.PrefixFrom(second, second.BitLen()).String(), "dev", "lo")
		w.route(w.outside, second)
		all, some := w.addr("0.0.0.0", "::"), netip.PrefixFrom(second, second.BitLen())
		s := w.cluster()
		s.service(nil, at(w.a))
		now := s.Publish()
		for _, tc := range []struct {
			name          string
			of            []netip.Prefix
			first, second string
		}{
			{"primary", nil, "a masq", "reject"},
			{"some", []netip.Prefix{some}, "reject", "a masq"},
			{"all", []netip.Prefix{netip.PrefixFrom(all, 0)}, "a masq", "a masq"},
		} {
			apply(t, ap, proxy.CompileAll(now, proxy.Config{Node: "n1", NodePortAddresses: tc.of}), w.pods())
			for _, ask := range []struct {
				from place
				to   netip.Addr
				want string
			}{{w.outside, w.node.addr, tc.first}, {w.outside, second, tc.second}, {w.node, loopback, "reject"}} {
				if got := w.meet(ask.from, "tcp", netip.AddrPortFrom(ask.to, 30080), ask.want); got != ask.want {
					t.Errorf("%s: %s from %s meets %q, want %q", tc.name, ask.to, ask.from.name, got, ask.want)
				}
			}
		}
	})
}

// route leads an address from a place to the node.
func (w *world) route(from place, a netip.Addr) {
	nettest.Do(w.t, from.ns, func() {
		nettest.Run(w.t, "ip", "route", "add", fmt.Sprint(netip.PrefixFrom(a, a.BitLen())), "via", w.node.addr.String(), "dev", "tmp"+from.name)
	})
}
