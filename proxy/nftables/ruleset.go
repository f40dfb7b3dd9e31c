// Package nftables renders a proxy.Table as nftables state: maps that hold all
// Services as data, and a few rules whose number depends only on how many
// different numbers of endpoints there are. Load makes a whole table, Diff what
// changed, Adopt takes over what the kernel has.
//
// It is pure: it makes nft.Tx values and touches no kernel. The package apply
// beneath it commits them.
package nftables

import (
	"fmt"
	"net/netip"

	"github.com/podlane/podlane/kernel/nft"
)

// Layout is raised with every change of the rules, maps or comments that makes
// what an older agent left in the kernel unfit for adoption.
const Layout = 2

// MarkBit is the bit of the packet mark that asks for masquerading. It is set and
// cleared on the first packet of a connection only. Kubernetes' own are 0x4000
// and 0x8000; 0x2000 is used by no network plugin we know of.
const MarkBit = 0x2000

// LocalSlot is the first slot of the endpoints of this node, in the maps of
// endpoints, where a frontend has others too.
const LocalSlot = 1 << 31

// Names are those of the table in force: the second is used where a table must be
// built anew beside one of the first name.
var Names = [2]string{
	fmt.Sprintf("%s%d", nft.Prefix, Layout),
	fmt.Sprintf("%s%d-b", nft.Prefix, Layout),
}

// Ruleset names the objects of one table.
//
//	first packet of a connection: prerouting, output ─▶ dispatch
//	 @services, @nodeports ─▶ number ─▶ @chains ─▶ lb<N>, external<N>, local<N>, nodeport-...
//	                                       │         ├ mark it, where the client is to be masqueraded
//	                                       │         └ dnat by @endpoints, a random slot below N
//	                                       ├───▶ refuse: reset, or ICMP port unreachable; or drop
//	                                       └───▶ sticky-<hash>: to-<hash> of the endpoint that the client had
//	local<N>, for clients on the node: inside ─▶ @inside ─▶ number ─▶ @inside-chains ─▶ inside<N>
//	before all this: @sources ─▶ sources-<hash>: clients that are in none of the ranges are dropped
//	after it: a cluster IP is refused, an address of a Service CIDR dropped
//
//	postrouting: saddr . daddr in @hairpin, or marked ─▶ masquerade
//
// That the services map has a number, and not a verdict, is for the cost of a
// change: for one more element that goes to a chain the kernel validates all
// elements of the table again, which took 0.1 ms with 1,000 Services and 10 ms
// with 40,000; a number takes 0.02 ms always. The number travels from one look-up
// to the next in the packet's skb priority, because nft 1.0.6 cannot print one
// look-up inside another; the chains set it to none.
type Ruleset struct {
	Table     nft.Table
	Services  nft.Set // frontend → number
	Endpoints nft.Set // frontend and slot → endpoint
	Inside    nft.Set // frontend → number for clients on this node
	Sources   nft.Set // frontend → the chain of its source ranges

	NodePorts         nft.Set // protocol and port → number
	NodePortEndpoints nft.Set // protocol, port and slot → endpoint
	NodePortInside    nft.Set // protocol and port → number for clients on this node

	Chains       nft.Set // number → verdict
	InsideChains nft.Set // number with the bit forInside → verdict
	ClusterIPs   nft.Set // all cluster IPs
	Pods         nft.Set // the node's pods
	Hairpin      nft.Set // A . A for each of them
}

// NewRuleset names the objects of the table called name.
func NewRuleset(f nft.Family, name string) Ruleset {
	t := nft.Table{Family: f, Name: name}
	addr, number := nft.AddrType(f), []nft.Type{nft.Mark}
	front := []nft.Type{addr, nft.InetProto, nft.InetService}
	port := front[1:]
	slot := func(key []nft.Type) []nft.Type { return append(key[:len(key):len(key)], nft.Mark) }
	endpoint := []nft.Type{addr, nft.InetService}
	return Ruleset{
		Table:     t,
		Services:  nft.Set{Table: t, Name: "services", Key: front, Data: number, Counter: true},
		Endpoints: nft.Set{Table: t, Name: "endpoints", Key: slot(front), Data: endpoint},
		Inside:    nft.Set{Table: t, Name: "inside", Key: front, Data: number},
		Sources:   nft.Set{Table: t, Name: "sources", Key: front, Verdicts: true},

		NodePorts:         nft.Set{Table: t, Name: "nodeports", Key: port, Data: number, Counter: true},
		NodePortEndpoints: nft.Set{Table: t, Name: "nodeport-endpoints", Key: slot(port), Data: endpoint},
		NodePortInside:    nft.Set{Table: t, Name: "nodeport-inside", Key: port, Data: number},

		Chains:       nft.Set{Table: t, Name: "chains", Key: number, Verdicts: true},
		InsideChains: nft.Set{Table: t, Name: "inside-chains", Key: number, Verdicts: true},
		ClusterIPs:   nft.Set{Table: t, Name: "cluster-ips", Key: []nft.Type{addr}},
		Pods:         nft.Set{Table: t, Name: "pods", Key: []nft.Type{addr}},
		Hairpin:      nft.Set{Table: t, Name: "hairpin", Key: []nft.Type{addr, addr}},
	}
}

// Sets are all sets and maps of the table but those of affinity.
func (r Ruleset) Sets() []nft.Set {
	return append(r.Adopted(), r.Endpoints, r.NodePortEndpoints)
}

// Adopted are the sets whose elements Adopt needs.
func (r Ruleset) Adopted() []nft.Set {
	return []nft.Set{r.Services, r.NodePorts, r.Inside, r.NodePortInside, r.Sources, r.Chains, r.InsideChains, r.ClusterIPs, r.Pods, r.Hairpin}
}

// The chains that are always there beside the base chains.
const (
	refuse       = "refuse"
	dispatch     = "dispatch"
	nodePorts    = "nodeports" // changes with Table.NodePorts
	serviceCIDRs = "service-cidrs"
	inside       = "inside"
	nodeInside   = "nodeport-inside"
)

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

func (c ruled) create(tx *nft.Tx) {
	tx.CreateChain(c.chain)
	c.fill(tx)
}

func (c ruled) fill(tx *nft.Tx) {
	for _, r := range c.rules {
		tx.AddRule(c.chain, r)
	}
}

func (r Ruleset) chain(name string) nft.Chain { return nft.Chain{Table: r.Table, Name: name} }

// front and port are the fields of the keys of frontends and of NodePorts.
func (r Ruleset) front() []nft.Field {
	return []nft.Field{nft.Daddr(r.Table.Family), nft.L4Proto(), nft.Dport()}
}

func (r Ruleset) port() []nft.Field { return r.front()[1:] }

// follow sends a packet to the chain of the number that a map has for the fields.
func (r Ruleset) follow(s nft.Set, fields []nft.Field) []nft.Part {
	return []nft.Part{nft.PriorityMap(s, fields...), nft.Vmap(r.Chains, nft.Priority())}
}

// fixedChains are those that are always there and always the same, but the base
// chains, in the order in which they can be made.
func (r Ruleset) fixedChains() []ruled {
	drop := nft.NewRule(nft.Do(nft.Drop, ""))
	reached := func(name string, s nft.Set, fields []nft.Field) ruled {
		return ruled{r.chain(name), []nft.Rule{
			nft.NewRule(nft.PriorityMap(s, fields...), nft.Vmap(r.InsideChains, nft.Priority())), drop}}
	}
	return []ruled{
		// It answers at once: TCP by a reset, whose rate the kernel does not limit as it
		// does that of ICMP errors.
		{r.chain(refuse), []nft.Rule{nft.NewRule(nft.L4Is(6, "tcp"), nft.RejectReset()), nft.NewRule(nft.Reject(r.Table.Family))}},
		reached(inside, r.Inside, r.front()),
		reached(nodeInside, r.NodePortInside, r.port()),
	}
}

// dispatchChain is where every new connection begins. A node's own address is let
// through even where it is a cluster IP too: a proxy on the node may have bound it.
func (r Ruleset) dispatchChain() ruled {
	return ruled{r.chain(dispatch), []nft.Rule{
		nft.NewRule(nft.Vmap(r.Sources, r.front()...)),
		nft.NewRule(r.follow(r.Services, r.front())...),
		nft.NewRule(nft.Do(nft.Jump, nodePorts)),
		{Comment: "a cluster IP, but no port of its Service", Parts: []nft.Part{
			nft.In(r.ClusterIPs, nft.Daddr(r.Table.Family)), nft.DaddrNotLocal(), nft.Do(nft.GoTo, refuse)}},
		nft.NewRule(nft.Do(nft.GoTo, serviceCIDRs)),
	}}
}

// nodePortsChain answers on the node's addresses in the prefixes. Each rule has
// its prefix as the comment, by which Adopt knows it.
func (r Ruleset) nodePortsChain(ps []netip.Prefix) ruled {
	c := ruled{chain: r.chain(nodePorts)}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if r.Table.Family == nft.IPv6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	for _, p := range ps {
		var parts []nft.Part
		if p.Bits() > 0 {
			parts = append(parts, nft.Within(nft.Daddr(r.Table.Family), p))
		}
		parts = append(parts, nft.DaddrLocal())
		if p.Overlaps(loopback) {
			parts = append(parts, nft.NotWithin(nft.Daddr(r.Table.Family), loopback))
		}
		c.rules = append(c.rules, nft.Rule{Comment: p.String(), Parts: append(parts, r.follow(r.NodePorts, r.port())...)})
	}
	return c
}

// serviceCIDRsChain drops what is for no Service.
func (r Ruleset) serviceCIDRsChain(ps []netip.Prefix) ruled {
	c := ruled{chain: r.chain(serviceCIDRs)}
	for _, p := range ps {
		c.rules = append(c.rules, nft.Rule{Comment: p.String(), Parts: []nft.Part{
			nft.Within(nft.Daddr(r.Table.Family), p), nft.DaddrNotLocal(), nft.Do(nft.Drop, "")}})
	}
	return c
}

// numberChain is the chain of a plain number: it sends a connection to one of so
// many slots, each as likely.
func (r Ruleset) numberChain(n number) ruled {
	c := ruled{r.chain(n.chain()), r.headRules(n, "")}
	endpoints, key := r.Endpoints, r.front()
	if n&nodePort != 0 {
		endpoints, key = r.NodePortEndpoints, r.port()
	}
	var offset uint32
	end := nft.Do(nft.GoTo, refuse)
	if n&local != 0 {
		offset, end = LocalSlot, nft.Do(nft.Drop, "")
	}
	slot := func(of int) nft.Rule {
		return nft.NewRule(nft.DNATMap(r.Table.Family, endpoints, append(key[:len(key):len(key)], nft.RandomMod(of, offset))...))
	}
	if n.count() > 0 {
		c.rules = append(c.rules, slot(n.count()))
	}
	if n.count() > 1 {
		// A packet may find the number of slots just before a transaction and its slot
		// just after it, when the last one is gone; slot 0 is there as long as any is.
		again := slot(1)
		again.Comment = "that slot has just gone"
		c.rules = append(c.rules, again)
	}
	c.rules = append(c.rules, nft.NewRule(end))
	return c
}

// headRules begin every chain that a number leads to: they mark connections to be
// masqueraded and lead clients on the node elsewhere, in a plain chain by the map
// inside.
func (r Ruleset) headRules(n number, to string) []nft.Rule {
	f := r.Table.Family
	rules := []nft.Rule{nft.NewRule(nft.PriorityNone())}
	switch {
	case n&everyone != 0:
		return append(rules, nft.NewRule(nft.MarkSet(MarkBit)))
	case n&local != 0:
		switch {
		case to == "" && n&nodePort != 0:
			to = nodeInside
		case to == "":
			to = inside
		}
		return append(rules,
			nft.NewRule(nft.In(r.Pods, nft.Saddr(f)), nft.Do(nft.GoTo, to)),
			nft.NewRule(nft.SaddrLocal(), nft.Do(nft.GoTo, to)))
	}
	return append(rules, nft.NewRule(nft.NotIn(r.Pods, nft.Saddr(f)), nft.MarkSet(MarkBit)))
}

// baseChains are what puts the table in force.
func (r Ruleset) baseChains() []ruled {
	f := r.Table.Family
	base := func(name, typ string, hook nft.Hook, priority int32) nft.Chain {
		return nft.Chain{Table: r.Table, Name: name, Hook: hook, Type: typ, Priority: priority}
	}
	toDispatch := []nft.Rule{nft.NewRule(nft.Do(nft.GoTo, dispatch))}
	invalid := func(of nft.Field) nft.Rule {
		return nft.Rule{Comment: "it would go on without translation, and the other end would reset the connection",
			Parts: []nft.Part{nft.StateInvalid(), nft.L4Is(6, "tcp"), nft.In(r.Pods, of), nft.Do(nft.Drop, "")}}
	}
	return []ruled{
		{base("nat-prerouting", "nat", nft.Prerouting, nft.DstNAT), toDispatch},
		{base("nat-output", "nat", nft.Output, nft.DstNAT), toDispatch},
		{base("nat-postrouting", "nat", nft.Postrouting, nft.SrcNAT), []nft.Rule{
			{Comment: "a pod that reached itself", Parts: []nft.Part{
				nft.In(r.Hairpin, nft.Saddr(f), nft.Daddr(f)), nft.StatusDNAT(), nft.Masquerade()}},
			{Comment: "the answer has to come back here", Parts: []nft.Part{
				nft.MarkHas(MarkBit), nft.StatusDNAT(), nft.MarkClear(MarkBit), nft.Masquerade()}},
		}},
		{base("filter-forward", "filter", nft.Forward, nft.Filter), []nft.Rule{invalid(nft.Saddr(f)), invalid(nft.Daddr(f))}},
	}
}

// skeleton adds the table anew, its maps and sets, and the chains that are always
// there: all but what puts it in force.
func (r Ruleset) skeleton(tx *nft.Tx) {
	tx.AddTable(r.Table)
	tx.DeleteTable(r.Table)
	tx.AddTable(r.Table)
	for _, s := range r.Sets() {
		tx.AddSet(s)
	}
	tx.CreateElements(r.Chains, nft.Element{Key: dropped.mark(), Verdict: nft.Verdict{Code: nft.Drop}})
	for _, c := range r.fixedChains() {
		c.create(tx)
	}
	tx.CreateElements(r.Chains, r.element(refused, refuse))
	r.nodePortsChain(nil).create(tx)
	r.serviceCIDRsChain(nil).create(tx)
	r.dispatchChain().create(tx)
}

// element is that of a number in the map that chainsOf gives.
func (r Ruleset) element(n number, chain string) nft.Element {
	return nft.Element{Key: n.mark(), Verdict: nft.Verdict{Code: nft.GoTo, Chain: chain}}
}

// chainsOf is the map that a plain number is in. That there are two is because the
// kernel takes no rules by which a chain could lead to itself.
func (r Ruleset) chainsOf(n number) nft.Set {
	if n&forInside != 0 {
		return r.InsideChains
	}
	return r.Chains
}
