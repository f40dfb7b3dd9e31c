// Package egress decides which connections of the node's own pods get the node's
// address: those that leave the cluster, since nobody outside has a route to pods.
// It is pure; it does not decide about connections to Services (package proxy),
// whose destination has been translated before these rules see them.
package egress

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// Name is the table's. It has no number, by which it differs from the service
// tables: it is never built beside itself, since its rules fit into one transaction,
// which takes another version's place.
const Name = nft.Prefix + "egress"

// Config is what the operator wants.
type Config struct {
	On bool
	// Exclude are destinations outside the cluster that have routes to pods.
	Exclude []netip.Prefix
}

// Rules say what of one family is masqueraded: what comes from Sources and goes to
// none of the others. All are sorted and masked. Without Sources there is nothing
// to do.
type Rules struct {
	Sources []netip.Prefix // the own pod CIDRs
	Nodes   []netip.Addr   // all nodes' addresses
	Pods    []netip.Prefix // all nodes' pod CIDRs
	Exclude []netip.Prefix
}

// Compile gives the rules of a family on a node.
func Compile(c Config, node string, nodes cluster.Map[cluster.Node], f nft.Family) Rules {
	v6 := f == nft.IPv6
	own := nodes.Get(cluster.Key{Name: node})
	r := Rules{}
	if !c.On || own == nil {
		return r
	}
	r.Sources = ofFamily(own.PodCIDRs, v6)
	if len(r.Sources) == 0 {
		return r
	}
	for _, n := range nodes.All() {
		r.Pods = append(r.Pods, ofFamily(n.PodCIDRs, v6)...)
		for _, a := range n.Addresses {
			if a.Is6() == v6 {
				r.Nodes = append(r.Nodes, a)
			}
		}
	}
	r.Exclude = ofFamily(c.Exclude, v6)
	for _, ps := range []*[]netip.Prefix{&r.Sources, &r.Pods, &r.Exclude} {
		slices.SortFunc(*ps, comparePrefix)
		*ps = slices.Compact(*ps)
	}
	slices.SortFunc(r.Nodes, netip.Addr.Compare)
	r.Nodes = slices.Compact(r.Nodes)
	return r
}

func ofFamily(ps []netip.Prefix, v6 bool) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		if p.Addr().Is6() == v6 {
			out = append(out, p.Masked())
		}
	}
	return out
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Bits() - b.Bits(); c != 0 {
		return c
	}
	return a.Addr().Compare(b.Addr())
}

// Equal says whether two Rules are the same.
func (r Rules) Equal(o Rules) bool {
	return slices.Equal(r.Sources, o.Sources) && slices.Equal(r.Nodes, o.Nodes) && slices.Equal(r.Pods, o.Pods) && slices.Equal(r.Exclude, o.Exclude)
}

// Tx brings the rules into force, whatever the table has: its chains and sets are
// emptied and filled in one transaction, so that every packet meets the old rules
// or the new ones, and the base chain is never gone.
func (r Rules) Tx(f nft.Family) *nft.Tx {
	t := nft.Table{Family: f, Name: Name}
	base := nft.Chain{Table: t, Name: "postrouting", Hook: nft.Postrouting, Type: "nat", Priority: nft.SrcNAT}
	leaving := nft.Chain{Table: t, Name: "leaving"}
	tx := &nft.Tx{}
	tx.AddTable(t)
	tx.AddChain(base)
	tx.AddChain(leaving)
	tx.FlushChain(base)
	tx.FlushChain(leaving)
	for _, p := range r.Sources {
		tx.AddRule(base, nft.Rule{Parts: []nft.Part{nft.Within(nft.Saddr(f), p), nft.Do(nft.Jump, leaving.Name)}, Comment: "from this node's pods"})
	}
	for _, rule := range r.exceptions(tx, t) {
		tx.AddRule(leaving, rule)
	}
	tx.AddRule(leaving, nft.NewRule(nft.Masquerade()))
	return tx
}

// exceptions gives the rules by which a packet keeps its source, and fills their
// sets. Prefixes of one length are one set and one rule.
func (r Rules) exceptions(tx *nft.Tx, t nft.Table) []nft.Rule {
	back := nft.Do(nft.Return, "")
	nodes := nft.Set{Table: t, Name: "nodes", Key: []nft.Type{nft.AddrType(t.Family)}}
	fill(tx, nodes, r.Nodes)
	rules := []nft.Rule{{Parts: []nft.Part{nft.In(nodes, nft.Daddr(t.Family)), back}, Comment: "to a node"}}
	byLength := map[int][]netip.Addr{}
	for _, p := range r.Pods {
		byLength[p.Bits()] = append(byLength[p.Bits()], p.Addr())
	}
	for bits := range 129 {
		if addrs := byLength[bits]; addrs != nil {
			s := nft.Set{Table: t, Name: fmt.Sprintf("pods-%d", bits), Key: nodes.Key}
			fill(tx, s, addrs)
			rules = append(rules, nft.Rule{Parts: []nft.Part{nft.InMasked(s, nft.Daddr(t.Family), bits), back}, Comment: "to a pod"})
		}
	}
	for _, p := range r.Exclude {
		rules = append(rules, nft.Rule{Parts: []nft.Part{nft.Within(nft.Daddr(t.Family), p), back}, Comment: "excluded"})
	}
	return rules
}

func fill(tx *nft.Tx, s nft.Set, addrs []netip.Addr) {
	tx.AddSet(s)
	tx.FlushSet(s)
	for _, a := range addrs {
		tx.AddElements(s, nft.Element{Key: a.AsSlice()})
	}
}
