// Package guard decides which packets a node takes for what they say they are: VXLAN
// packets of the cluster's nodes, each with inner sources of its own pods alone, and
// packets of pods with the pods' own addresses. It is pure; it enforces no
// NetworkPolicy, and what it lets through has still to find its way.
package guard

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
)

// Name is the table's. It has no number, by which it differs from the service
// tables: its rules fit into one transaction, which takes another version's place.
const Name = nft.Prefix + "guard"

// The comments of the rules that drop, by which their counters are told.
const (
	Spoofed   = "the source is not the pod's own"
	FromPod   = "VXLAN or a probe from a pod"
	Stranger  = "VXLAN or a probe from an address that is no node's"
	Astray    = "VXLAN or a probe to an address of the node that is not for it"
	Inner     = "VXLAN whose inner source is not of the sending node"
	Forwarded = "to the VTEP or the probes of a node, from a pod or by a Service"
)

// Reasons are the comments, in the order in which they are shown.
var Reasons = []string{Spoofed, FromPod, Stranger, Astray, Inner, Forwarded}

// Rules are those of one family, which is the outer one of VXLAN.
type Rules struct {
	Family nft.Family
	// Port is the VTEPs' UDP port; 0 where there are none, and nothing is said of
	// VXLAN. Probe is the port of the agents' probes.
	Port, Probe uint16
	Own         []netip.Addr // this node's addresses, to which alone VXLAN is taken, sorted
	Asked       []netip.Addr // those to which probes are: with its own in its pods' networks, sorted
	Nodes       []netip.Addr // the other nodes' addresses, sorted
	// Gateways are those that the other nodes have in their pods' networks, from and to
	// which their agents ask too, sorted.
	Gateways []netip.Addr
	Pairs    []Pair // sorted
	// Outside are networks outside of the cluster with routes to pods, by whichever
	// node.
	Outside []netip.Prefix
}

// Pair is a node's address with what it may send from.
type Pair struct {
	Node  netip.Addr
	Inner netip.Prefix
}

// Compile gives the rules of a family.
func Compile(in overlay.Input, outside []netip.Prefix, f nft.Family) Rules {
	r := Rules{Family: f, Probe: overlay.ProbePort}
	tunnels := in.Config.Mode != overlay.Direct
	if tunnels {
		r.Port = in.Config.UDPPort()
		r.Outside = slices.Clone(outside)
	}
	if n := in.Nodes.Get(cluster.Key{Name: in.Node}); n != nil {
		r.Own = slices.DeleteFunc(slices.Clone(n.Addresses), func(a netip.Addr) bool { return nft.FamilyOf(a.Is6()) != f })
		r.Asked = append(slices.Clone(r.Own), probed(n.PodCIDRs, f)...)
	}
	for _, p := range overlay.Peers(in) {
		for _, a := range p.Node.Addresses {
			if nft.FamilyOf(a.Is6()) == f {
				r.Nodes = append(r.Nodes, a)
				if tunnels {
					r.pairs(a, p)
				}
			}
		}
		r.Gateways = append(r.Gateways, probed(p.PodCIDRs, f)...)
	}
	for _, addrs := range [][]netip.Addr{r.Own, r.Asked, r.Nodes, r.Gateways} {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	slices.SortFunc(r.Pairs, func(a, b Pair) int {
		return cmp.Or(cmp.Compare(a.Inner.Bits(), b.Inner.Bits()), a.Node.Compare(b.Node), a.Inner.Addr().Compare(b.Inner.Addr()))
	})
	return r
}

// probed are the addresses of a node in its pods' networks at which its agent answers.
func probed(podCIDRs []netip.Prefix, f nft.Family) (out []netip.Addr) {
	for _, c := range podCIDRs {
		if nft.FamilyOf(c.Addr().Is6()) == f {
			out = append(out, overlay.Gateway(c), overlay.ProbeAddr(c))
		}
	}
	return out
}

// pairs are a node's pods, and the node itself where a program on it has bound one
// of its addresses.
func (r *Rules) pairs(outer netip.Addr, p overlay.Peer) {
	for _, c := range p.PodCIDRs {
		r.Pairs = append(r.Pairs, Pair{outer, c})
	}
	for _, a := range p.Node.Addresses {
		r.Pairs = append(r.Pairs, Pair{outer, netip.PrefixFrom(a, a.BitLen())})
	}
}

// Equal says whether two Rules are the same.
func (r Rules) Equal(o Rules) bool {
	return r.Family == o.Family && r.Port == o.Port && r.Probe == o.Probe &&
		slices.Equal(r.Own, o.Own) && slices.Equal(r.Asked, o.Asked) && slices.Equal(r.Nodes, o.Nodes) && slices.Equal(r.Gateways, o.Gateways) && slices.Equal(r.Pairs, o.Pairs) && slices.Equal(r.Outside, o.Outside)
}

// Tx brings the rules into force, whatever the table has: its chains and sets are
// emptied and filled in one transaction, so that every packet meets the old rules
// or the new ones.
//
//	prerouting: from a pod ─▶ has its source a route to that pod? ─▶ drop
//	            to the own VTEP ─▶ notrack
//	output:     to another node's VTEP ─▶ notrack
//	input:      to the VTEP ─▶ vxlan: to the own address, from that node's pods? ─▶ pass; else say why and drop
//	            to the probes ─▶ probes: to an address for them, from a node? ─▶ pass; else say why and drop
//	forward:    to another node's VTEP or probes ─▶ vteps: from a pod, or translated? ─▶ drop
//
// Conntrack has nothing to say of VXLAN: the packets of one flow go one way, those of the
// other way have another source port, and nothing translates them.
//
// A pod that sends to another address of a node, one that masquerading knows nothing of,
// has its own node's address there. So it is no node's packet that comes to such an address.
//
// What comes to the node is looked at in its input, where fragments are whole
// again, and before the VTEP takes it; what the fast path brings to a pod has
// passed there too.
func (r Rules) Tx() *nft.Tx {
	t := nft.Table{Family: r.Family, Name: Name}
	tx := &nft.Tx{}
	tx.AddTable(t)
	chain := func(c nft.Chain, rules ...nft.Rule) {
		c.Table = t
		tx.AddChain(c)
		tx.FlushChain(c)
		for _, rule := range rules {
			tx.AddRule(c, rule)
		}
	}
	fromPod := []nft.Part{nft.FromGroup(link.Group), nft.NotFrom(overlay.Device)}
	before := []nft.Rule{drop(Spoofed, append(fromPod, nft.NoWayBack())...)}
	input := []nft.Rule{nft.NewRule(nft.ToUDP(r.Probe), nft.Do(nft.GoTo, "probes"))}
	own, asked, nodes, gateways := r.set("own"), r.set("asked"), r.set("nodes"), r.set("gateways")
	fillNodes(tx, own, r.Own)
	fillNodes(tx, asked, r.Asked)
	fillNodes(tx, nodes, r.Nodes)
	fillNodes(tx, gateways, r.Gateways)
	toNode := func(port uint16, at nft.Set) nft.Rule {
		return nft.NewRule(nft.ToUDP(port), nft.In(at, nft.Daddr(r.Family)), nft.Do(nft.Jump, "vteps"))
	}
	forward := []nft.Rule{toNode(r.Probe, nodes), toNode(r.Probe, gateways)}
	pass := nft.Do(nft.Return, "")
	chain(nft.Chain{Name: "probes"}, drop(FromPod, fromPod...), drop(Forwarded, nft.StatusDNAT()), drop(Astray, nft.NotIn(asked, nft.Daddr(r.Family))),
		nft.NewRule(nft.In(nodes, nft.Saddr(r.Family)), pass), nft.NewRule(nft.In(gateways, nft.Saddr(r.Family)), pass), drop(Stranger))
	var output []nft.Rule
	if r.Port != 0 {
		untracked := func(to nft.Set) nft.Rule {
			return nft.NewRule(nft.ToUDP(r.Port), nft.In(to, nft.Daddr(r.Family)), nft.Notrack())
		}
		before, output = append(before, untracked(own)), append(output, untracked(nodes))
		chain(nft.Chain{Name: "vxlan"}, r.vxlan(tx, own, nodes)...)
		input = append([]nft.Rule{nft.NewRule(nft.ToUDP(r.Port), nft.Do(nft.GoTo, "vxlan"))}, input...)
		forward = append(forward, toNode(r.Port, nodes))
	}
	chain(nft.Chain{Name: "vteps"}, drop(Forwarded, nft.FromGroup(link.Group)), drop(Forwarded, nft.StatusDNAT()))
	chain(nft.Chain{Name: "prerouting", Hook: nft.Prerouting, Type: "filter", Priority: nft.Raw}, before...)
	chain(nft.Chain{Name: "output", Hook: nft.Output, Type: "filter", Priority: nft.Raw}, output...)
	chain(nft.Chain{Name: "input", Hook: nft.Input, Type: "filter", Priority: nft.Raw}, input...)
	chain(nft.Chain{Name: "forward", Hook: nft.Forward, Type: "filter", Priority: nft.Filter}, forward...)
	return tx
}

func drop(why string, match ...nft.Part) nft.Rule {
	return nft.Rule{Parts: append(slices.Clone(match), nft.Count(), nft.Do(nft.Drop, "")), Comment: why}
}

func (r Rules) set(name string) nft.Set {
	return nft.Set{Table: nft.Table{Family: r.Family, Name: Name}, Name: name, Key: []nft.Type{nft.AddrType(r.Family)}}
}

func fillNodes(tx *nft.Tx, s nft.Set, addrs []netip.Addr) {
	tx.AddSet(s)
	tx.FlushSet(s)
	for _, a := range addrs {
		tx.AddElements(s, nft.Element{Key: a.AsSlice()})
	}
}

// vxlan gives the rules for what comes to the own VTEP. Pairs of one prefix length
// are one set and one rule: what is right passes by one look-up of where it is from, as the
// pair's outer source is a node's. VXLAN in VXLAN is dropped as a pod's.
func (r Rules) vxlan(tx *nft.Tx, own, nodes nft.Set) []nft.Rule {
	rules := []nft.Rule{drop(FromPod, nft.FromGroup(link.Group)), drop(Forwarded, nft.StatusDNAT()), drop(Astray, nft.NotIn(own, nft.Daddr(r.Family)))}
	pass := nft.Do(nft.Return, "")
	for _, inner := range []nft.Family{nft.IPv4, nft.IPv6} {
		of := map[int][]Pair{}
		for _, p := range r.Pairs {
			if nft.FamilyOf(p.Inner.Addr().Is6()) == inner {
				of[p.Inner.Bits()] = append(of[p.Inner.Bits()], p)
			}
		}
		for bits := range 129 {
			if pairs := of[bits]; pairs != nil {
				s := nft.Set{Table: nodes.Table, Name: fmt.Sprintf("%s-%d", inner, bits), Key: []nft.Type{nft.AddrType(r.Family), nft.AddrType(inner)}}
				fillPairs(tx, s, pairs)
				rules = append(rules, nft.NewRule(nft.InnerIs(inner), nft.InnerPair(s, r.Family, inner, bits), pass))
			}
		}
	}
	rules = append(rules, drop(Stranger, nft.NotIn(nodes, nft.Saddr(r.Family))))
	for _, p := range r.Outside {
		f := nft.FamilyOf(p.Addr().Is6())
		rules = append(rules, nft.NewRule(nft.InnerIs(f), nft.InnerWithin(f, p), pass))
	}
	return append(rules, drop(Inner))
}

func fillPairs(tx *nft.Tx, s nft.Set, pairs []Pair) {
	tx.AddSet(s)
	tx.FlushSet(s)
	for _, p := range pairs {
		tx.AddElements(s, nft.Element{Key: nft.Concat(nil).Addr(p.Node).Addr(p.Inner.Addr())})
	}
}
