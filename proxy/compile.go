package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Config is what a Table depends on beside the cluster's objects.
type Config struct {
	Node string // own name
	// NodePortAddresses are the prefixes in which the node's addresses answer to
	// NodePorts. A family of which there is none has all its addresses answer.
	// With none at all, the node's address (its first InternalIP of each family)
	// answers alone.
	NodePortAddresses []netip.Prefix
	// NoExternalIPs ignores spec.externalIPs (Kubernetes' feature gate
	// AllowServiceExternalIPs, turned off).
	NoExternalIPs bool
	// MasqueradeAll replaces the source address of all connections to cluster IPs,
	// those of pods of this node too.
	MasqueradeAll bool
	// Counted are the Services whose endpoints are counted though they do not ask for it themselves. Sorted.
	Counted []cluster.Key
	// Silent is what the agent found out about a Service's endpoints on this node.
	Silent Silent
}

// Silent are endpoints of one Service on this node that do not answer, though they
// may be ready still: new connections go to others, where there are others.
type Silent struct {
	Service cluster.Key
	Addrs   []netip.Addr // sorted
}

func (s Silent) equal(o Silent) bool {
	return s.Service == o.Service && slices.Equal(s.Addrs, o.Addrs)
}

// of gives the addresses of a Service.
func (s Silent) of(k cluster.Key) []netip.Addr {
	if s.Service == k {
		return s.Addrs
	}
	return nil
}

// ParseNodePortAddresses reads Config.NodePortAddresses: "primary", or CIDRs.
func ParseNodePortAddresses(texts []string) ([]netip.Prefix, error) {
	if slices.Equal(texts, []string{"primary"}) {
		return nil, nil
	}
	var out []netip.Prefix
	for _, t := range texts {
		p, err := netip.ParsePrefix(t)
		if err != nil {
			return nil, fmt.Errorf("%q is neither primary nor a CIDR such as 192.0.2.0/24", t)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// facts are what entries depend on beside their own objects.
type facts struct {
	node, zone    string
	addrs         []netip.Addr // the node's, one a family
	noExternalIPs bool
	silent        []netip.Addr // of the Service that is compiled; not compared
	masqueradeAll bool
	counted       []cluster.Key
}

func (f facts) equal(o facts) bool {
	return f.node == o.node && f.zone == o.zone && f.noExternalIPs == o.noExternalIPs && f.masqueradeAll == o.masqueradeAll && slices.Equal(f.addrs, o.addrs) && slices.Equal(f.counted, o.counted)
}

// CompileAll makes the Table of a Snapshot from nothing. It is the reference:
// Compile gives an equal Table, sooner.
func CompileAll(s *cluster.Snapshot, c Config) *Table {
	return Compile(&Table{}, &cluster.Snapshot{}, s, c)
}

// Compile makes the Table of now, given the Table of old. Its cost grows with
// what changed between the two Snapshots, not with their size; only a change of
// the own node's name, zone or addresses costs a walk over all Services.
func Compile(prev *Table, old, now *cluster.Snapshot, c Config) *Table {
	next := &Table{facts: factsOf(now, c), silent: c.Silent, ServiceCIDRs: prev.ServiceCIDRs, NodePorts: prev.NodePorts}
	expected := 0
	if old.Services.Len() == 0 {
		expected = now.Services.Len()
	}
	dirty := make(map[cluster.Key]bool, expected)
	if !next.silent.equal(prev.silent) {
		dirty[prev.silent.Service], dirty[next.silent.Service] = true, true
	}
	for change := range now.Services.Changed(old.Services) {
		dirty[change.Key] = true
	}
	for change := range now.Endpoints.Changed(old.Endpoints) {
		dirty[change.Key] = true
	}
	if !next.facts.equal(prev.facts) {
		for k := range now.Services.All() {
			dirty[k] = true
		}
	}
	if nodePorts := nodePorts(c, next.facts.addrs); !slices.Equal(nodePorts, prev.NodePorts) {
		next.NodePorts = nodePorts
	}
	for range now.ServiceCIDRs.Changed(old.ServiceCIDRs) {
		next.ServiceCIDRs = serviceCIDRs(now)
		break
	}
	set := make(map[cluster.Key]*Entry, expected)
	for k := range dirty {
		f := next.facts
		f.silent = next.silent.of(k)
		e, was := compileEntry(now.Services.Get(k), now.Endpoints.Get(k), f), prev.Services.Get(k)
		if !reflect.DeepEqual(e, was) {
			set[k] = e
		}
	}
	if len(set) == 0 && next.facts.equal(prev.facts) && next.silent.equal(prev.silent) && slices.Equal(next.NodePorts, prev.NodePorts) && slices.Equal(next.ServiceCIDRs, prev.ServiceCIDRs) {
		return prev
	}
	next.Services = prev.Services.With(set)
	return next
}

func factsOf(s *cluster.Snapshot, c Config) facts {
	f := facts{node: c.Node, noExternalIPs: c.NoExternalIPs, masqueradeAll: c.MasqueradeAll, counted: c.Counted}
	n := s.Nodes.Get(cluster.Key{Name: c.Node})
	if n == nil {
		return f
	}
	f.zone = n.Zone
	for _, v6 := range []bool{false, true} {
		if a := n.Address(v6); a.IsValid() {
			f.addrs = append(f.addrs, a)
		}
	}
	return f
}

// nodePorts gives Table.NodePorts.
func nodePorts(c Config, addrs []netip.Addr) []netip.Prefix {
	out := slices.Clone(c.NodePortAddresses)
	if len(out) == 0 {
		for _, a := range addrs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
		return out
	}
	for _, all := range []string{"0.0.0.0/0", "::/0"} {
		p := netip.MustParsePrefix(all)
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr().Is4() == p.Addr().Is4() }) {
			out = append(out, p)
		}
	}
	return sortPrefixes(out)
}

func serviceCIDRs(s *cluster.Snapshot) []netip.Prefix {
	var out []netip.Prefix
	for _, c := range s.ServiceCIDRs.All() {
		out = append(out, c.CIDRs...)
	}
	return sortPrefixes(out)
}

func sortPrefixes(ps []netip.Prefix) []netip.Prefix {
	for i := range ps {
		ps[i] = ps[i].Masked()
	}
	slices.SortFunc(ps, comparePrefix)
	return slices.Compact(ps)
}

func comparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// proxied says whether a Service is ours to serve. A Service without a cluster IP
// has nothing to translate; of type ExternalName it may keep an old one for a
// while, which no longer counts.
func proxied(s *cluster.Service) bool {
	return s != nil && s.Type != cluster.ExternalName && !s.Headless && s.ProxyName == "" && len(s.ClusterIPs) > 0
}

func compileService(s *cluster.Service, of *cluster.ServiceSlices, f facts) *Entry {
	if !proxied(s) {
		return nil
	}
	e := &Entry{Key: s.Key, HealthCheckNodePort: s.HealthCheckNodePort}
	var ready [2][]netip.Addr
	for _, sp := range s.Ports {
		p := Port{Name: sp.Name, Protocol: sp.Protocol, Frontends: frontends(s, sp, f),
			InternalLocal: s.InternalLocal, ExternalLocal: s.ExternalLocal, Affinity: s.Affinity, Count: f.counts(s), MasqueradeAll: f.masqueradeAll}
		outside := slices.ContainsFunc(p.Frontends, func(f Frontend) bool { return f.Kind != ClusterIP })
		for _, ip := range s.ClusterIPs {
			v6 := ip.Is6()
			all := gather(of, sp, v6, f.node)
			if !s.InternalLocal && !s.ExternalLocal {
				all = answering(all, f.silent)
			}
			es := choose(all, !s.InternalLocal || outside, s.InternalLocal || s.ExternalLocal && outside, f.node, f.zone)
			if sp.Protocol == cluster.UDP {
				es.Serving = pick(all, func(e endpoint) bool { return e.Serving })
			}
			p.Endpoints[Family(v6)] = es
			ready[Family(v6)] = appendReady(ready[Family(v6)], all)
		}
		e.Ports = append(e.Ports, p)
	}
	for i := range ready {
		e.LocalReady[i] = len(ready[i])
	}
	slices.SortFunc(e.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
	})
	return e
}

// appendReady adds the addresses of ready endpoints on this node.
func appendReady(addrs []netip.Addr, all []endpoint) []netip.Addr {
	for _, e := range all {
		if e.local && e.Ready && !slices.Contains(addrs, e.Address) {
			addrs = append(addrs, e.Address)
		}
	}
	return addrs
}

// frontends gives the addresses of a port, in the families in which the Service
// has a cluster IP. Where an address comes twice, the first kind has it.
func frontends(s *cluster.Service, sp cluster.ServicePort, f facts) []Frontend {
	var out []Frontend
	add := func(k Kind, ip netip.Addr, port uint16, sources []netip.Prefix) {
		if slices.ContainsFunc(s.ClusterIPs, func(c netip.Addr) bool { return c.Is6() == ip.Is6() }) {
			out = append(out, Frontend{k, netip.AddrPortFrom(ip, port), sources})
		}
	}
	for _, ip := range s.ClusterIPs {
		add(ClusterIP, ip, sp.Port, nil)
		if sp.NodePort != 0 {
			add(NodePort, unspecified(ip.Is6()), sp.NodePort, nil)
		}
	}
	if !f.noExternalIPs {
		for _, ip := range s.ExternalIPs {
			add(ExternalIP, ip, sp.Port, nil)
		}
	}
	for _, ip := range s.LoadBalancerIPs {
		add(LoadBalancer, ip, sp.Port, sources(s, ip.Is6(), f))
	}
	slices.SortStableFunc(out, func(a, b Frontend) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Kind, b.Kind))
	})
	return merge(out)
}

// merge keeps the first of frontends with one address, with the sources of all.
func merge(fs []Frontend) []Frontend {
	var out []Frontend
	for _, f := range fs {
		if n := len(out); n > 0 && out[n-1].Addr == f.Addr {
			out[n-1].Sources = append(out[n-1].Sources, f.Sources...)
			continue
		}
		out = append(out, f)
	}
	return out
}

func unspecified(v6 bool) netip.Addr {
	if v6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// sources gives the clients that may use a Service's load balancer addresses of a
// family; none is no limit. Where the node's own address is among them, so are
// the load balancer's addresses: one that is bound to a local link is the source
// of what the node sends to it.
func sources(s *cluster.Service, v6 bool, f facts) []netip.Prefix {
	var out []netip.Prefix
	fromNode := false
	for _, r := range s.SourceRanges {
		if r.Addr().Is6() != v6 {
			continue
		}
		if r.Bits() == 0 {
			return nil
		}
		out = append(out, r)
		fromNode = fromNode || slices.ContainsFunc(f.addrs, r.Contains)
	}
	for _, ip := range s.LoadBalancerIPs {
		if fromNode && ip.Is6() == v6 {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	return sortPrefixes(out)
}
