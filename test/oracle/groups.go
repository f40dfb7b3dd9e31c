package oracle

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/packet"
	"github.com/podlane/podlane/test/oracle/world"
)

// target is a destination of connections.
type target struct {
	protocol cluster.Protocol
	to       netip.AddrPort
}

// group is a client and a target: the connections between them meet the same.
type group struct {
	target
	client   *client
	bound    bool // the destination is an address of the node
	backends []netip.AddrPort
	affinity bool
	seen     [2]map[meeting]int // kube-proxy's node, Podlane's
	astray   string             // how Podlane's node and Lookup differ
}

func (g *group) v6() bool { return g.to.Addr().Is6() }

func (g *group) String() string {
	return fmt.Sprintf("%s to %s/%s", g.client.name, g.to, g.protocol)
}

// meeting is what a connection met: how often is not in it.
type meeting struct {
	what string // "pass", "endpoint", "refused", "nothing"
	at   world.Place
	to   netip.AddrPort
	// source is the address that replaced the client's.
	source netip.Addr
	kind   packet.Kind // of a refusal
}

func (m meeting) String() string {
	switch {
	case m.what == "refused":
		return "refused by " + map[packet.Kind]string{packet.Reset: "a TCP reset", packet.Unreachable: "ICMP"}[m.kind]
	case m.what == "nothing":
		return "dropped"
	case m.source.IsValid():
		return fmt.Sprintf("%s %s (%s), from %s", m.what, m.to, m.at, m.source)
	}
	return fmt.Sprintf("%s %s (%s), from the client's own address", m.what, m.to, m.at)
}

func meetingOf(s world.Shot, o world.Outcome) meeting {
	m := meeting{at: o.At, to: o.Dst}
	switch {
	case o.Refused:
		return meeting{what: "refused", at: world.Nowhere, kind: o.Kind}
	case o.Lost():
		return meeting{what: "nothing", at: world.Nowhere}
	case o.Dst == s.To:
		m.what = "pass"
	default:
		m.what = "endpoint"
	}
	if o.Changed {
		m.source = o.Src.Addr()
	}
	return m
}

var protocols = map[corev1.Protocol]cluster.Protocol{corev1.ProtocolTCP: cluster.TCP, corev1.ProtocolUDP: cluster.UDP, corev1.ProtocolSCTP: cluster.SCTP}

// targets are all destinations that Services of the history had, have or might be
// thought to have.
func targets(services []*corev1.Service) []target {
	all := map[target]bool{}
	add := func(p cluster.Protocol, ip string, port int32) {
		a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(ip))
		if ok && port > 0 {
			all[target{p, netip.AddrPortFrom(a.Unmap(), uint16(port))}] = true
		}
	}
	for _, s := range services {
		addrs := slices.Concat(s.Spec.ClusterIPs, s.Spec.ExternalIPs)
		for _, in := range s.Status.LoadBalancer.Ingress {
			addrs = append(addrs, in.IP)
		}
		for _, p := range s.Spec.Ports {
			for _, a := range addrs {
				add(protocols[p.Protocol], a, p.Port)
			}
			for i := range history.NodeAddrs {
				add(protocols[p.Protocol], history.NodeAddrs[i].String(), p.NodePort)
				add(protocols[p.Protocol], history.OtherAddrs[i].String(), p.NodePort)
			}
		}
		for _, ip := range s.Spec.ClusterIPs {
			add(cluster.TCP, ip, 4444)
		}
		add(protocols[s.Spec.Ports[0].Protocol], "127.0.0.1", s.Spec.Ports[0].NodePort)
	}
	for _, ip := range []string{"10.96.0.200", "10.96.77.1", "fd00:96::200", "192.0.2.1", "fd00:192::1", "10.244.1.10", "fd00:244:1::a"} {
		add(cluster.UDP, ip, 80)
		add(cluster.TCP, ip, 4444)
	}
	return slices.SortedFunc(maps.Keys(all), func(a, b target) int {
		return cmp.Or(a.to.Compare(b.to), cmp.Compare(a.protocol, b.protocol))
	})
}

// groups are those of all clients and targets, of which kube-proxy knows too where
// a client is: one that comes over the pods' wire to its own address does not.
func groups(ts []target, bound []string) []*group {
	var gs []*group
	for _, t := range ts {
		own := slices.Contains(bound, t.to.Addr().String())
		for i := range clients {
			if t.to.Addr().IsLoopback() && clients[i].name != "host" {
				continue // such packets never get so far
			}
			gs = append(gs, &group{target: t, client: &clients[i], bound: own, seen: [2]map[meeting]int{{}, {}}})
		}
	}
	return gs
}

// toNode says that the destination is an address of the node.
func (g *group) toNode() bool {
	a := g.to.Addr()
	return g.bound || slices.Contains(history.NodeAddrs, a) || slices.Contains(history.OtherAddrs, a) ||
		slices.ContainsFunc(slices.Concat(world.PodWire, world.UplinkWire), func(p netip.Prefix) bool { return p.Addr() == a })
}

// query is a question to Lookup about a connection from that source.
func (g *group) query(source netip.Addr) proxy.Query {
	return proxy.Query{Client: g.client.kind, Source: source, Protocol: g.protocol, Destination: g.to, ToNode: g.toNode()}
}

// learn asks Lookup where the group's connections may go. What they meet is
// compared later; this says how many tries it takes to see it.
func (g *group) learn(t *proxy.Table, r *rand.Rand) bool {
	all := t.Lookup(g.query(g.to.Addr())) // any source: the backends are not for their use yet
	g.backends = all.Backends
	source := g.client.source(r, g)
	if !source.IsValid() {
		return false
	}
	res := t.Lookup(g.query(source))
	g.backends, g.affinity = res.Backends, res.Affinity
	return true
}

// expected is what Lookup says of connections from that source.
func (g *group) expected(t *proxy.Table, source netip.Addr) map[string]bool {
	res := t.Lookup(g.query(source))
	out := map[string]bool{}
	switch res.Verdict {
	case proxy.Reject:
		out["refused"] = true
	case proxy.Drop:
		out["nothing"] = true
	case proxy.Pass:
		out[plain("pass", g.to, false)] = true
	case proxy.Balance:
		for _, b := range res.Backends {
			masquerade, _ := res.MasqueradeTo(b)
			what := "endpoint"
			if b == g.to {
				what = "pass" // an endpoint with hostNetwork at the very address and port
			}
			out[plain(what, b, masquerade)] = true
		}
	}
	return out
}

func plain(what string, to netip.AddrPort, masquerade bool) string {
	if masquerade {
		return fmt.Sprintf("%s %s masqueraded", what, to)
	}
	return fmt.Sprintf("%s %s", what, to)
}

// plain is the meeting as far as Lookup knows it. What goes to the node itself does
// not leave it, so that it is not masqueraded, or by its own address.
func (m meeting) plain() string {
	if m.what == "refused" || m.what == "nothing" {
		return m.what
	}
	return plain(m.what, m.to, m.source.IsValid() && m.at != world.Node)
}

func describe(seen map[meeting]int) string {
	var lines []string
	for m, n := range seen {
		lines = append(lines, fmt.Sprintf("%s (%d times)", m, n))
	}
	slices.Sort(lines)
	return strings.Join(lines, "; ")
}
