// Package nftables renders a proxy.Table as nftables state: two maps that hold
// all Services as data, and a few rules whose number depends only on how many
// different endpoint counts there are. Load makes a whole table, Diff what
// changed, Adopt takes over what the kernel has.
//
// It is pure: it makes nft.Tx values and touches no kernel. The package apply
// beneath it commits them.
package nftables

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/kernel/nft"
)

// Layout is raised with every change of the rules, maps or comments that makes
// what an older agent left in the kernel unfit for adoption.
const Layout = 1

// MarkBit is the bit of the packet mark that asks for masquerading. It is set and
// cleared on the first packet of a connection only. Kubernetes' own are 0x4000
// and 0x8000; 0x2000 is used by no network plugin we know of.
const MarkBit = 0x2000

// Names are those of the table in force: the second is used where a table must be
// built anew beside one of the first name.
var Names = [2]string{
	fmt.Sprintf("%s%d", nft.Prefix, Layout),
	fmt.Sprintf("%s%d-b", nft.Prefix, Layout),
}

// Ruleset names the objects of one table.
//
//	first packet of a connection: prerouting, output       postrouting
//	 @services ─▶ N ─▶ @counts ─▶ lb<N>                     saddr . daddr in @hairpin ─▶ masquerade
//	                       │       ├ source no pod: mark    marked ─▶ masquerade
//	                       │       └ dnat by @endpoints, a random slot below N
//	                       └───▶ refuse: reset, or ICMP port unreachable
//
// That the services map has the number of endpoints, and not a verdict, is for the
// cost of a change: for one more element that goes to a chain the kernel
// validates all elements of the table again, which took 0.1 ms with 1,000
// Services and 10 ms with 40,000; a number takes 0.02 ms always. The number
// travels from one look-up to the next in the packet's skb priority, because nft
// 1.0.6 cannot print one look-up inside another; lb<N> sets it to none.
type Ruleset struct {
	Table     nft.Table
	Services  nft.Set // frontend → number of endpoints
	Counts    nft.Set // number of endpoints → goto lb<N>, or refuse
	Endpoints nft.Set // frontend and slot → endpoint
	Pods      nft.Set // the node's pods
	Hairpin   nft.Set // A . A for each of them
}

// NewRuleset names the objects of the table called name.
func NewRuleset(f nft.Family, name string) Ruleset {
	t := nft.Table{Family: f, Name: name}
	addr := nft.AddrType(f)
	frontend := []nft.Type{addr, nft.InetProto, nft.InetService}
	return Ruleset{
		Table:    t,
		Services: nft.Set{Table: t, Name: "services", Key: frontend, Data: []nft.Type{nft.Mark}, Counter: true},
		Counts:   nft.Set{Table: t, Name: "counts", Key: []nft.Type{nft.Mark}, Verdicts: true},
		Endpoints: nft.Set{Table: t, Name: "endpoints",
			Key: append(frontend[:3:3], nft.Mark), Data: []nft.Type{addr, nft.InetService}},
		Pods:    nft.Set{Table: t, Name: "pods", Key: []nft.Type{addr}},
		Hairpin: nft.Set{Table: t, Name: "hairpin", Key: []nft.Type{addr, addr}},
	}
}

const refuse = "refuse"

// lb is the name of the chain for n endpoints; with none it is that which refuses.
func lb(n int) string {
	if n == 0 {
		return refuse
	}
	return fmt.Sprintf("lb%d", n)
}

// ruled is a chain with its rules.
type ruled struct {
	chain nft.Chain
	rules []nft.Rule
}

func (r Ruleset) chain(name string) nft.Chain { return nft.Chain{Table: r.Table, Name: name} }

// refuseChain answers at once: TCP by a reset, whose rate the kernel does not
// limit as it does that of ICMP errors.
func (r Ruleset) refuseChain() ruled {
	return ruled{r.chain(refuse), []nft.Rule{
		nft.NewRule(nft.L4Is(6, "tcp"), nft.RejectReset()),
		nft.NewRule(nft.Reject(r.Table.Family)),
	}}
}

// lbChain sends a connection to one of n slots, each as likely. A packet may find
// the number of slots just before a transaction and its slot just after it, when
// the last one is gone; slot 0 is there as long as there is any.
func (r Ruleset) lbChain(n int) ruled {
	f := r.Table.Family
	slot := func(n int) nft.Rule {
		return nft.NewRule(nft.DNATMap(f, r.Endpoints, nft.Daddr(f), nft.L4Proto(), nft.Dport(), nft.RandomMod(n)))
	}
	rules := []nft.Rule{
		nft.NewRule(nft.PriorityNone()),
		nft.NewRule(nft.NotIn(r.Pods, nft.Saddr(f)), nft.MarkSet(MarkBit)),
		slot(n),
	}
	if n > 1 {
		again := slot(1)
		again.Comment = "that slot has just gone"
		rules = append(rules, again)
	}
	return ruled{r.chain(lb(n)), append(rules, nft.NewRule(nft.Do(nft.GoTo, refuse)))}
}

// baseChains are what puts the table in force.
func (r Ruleset) baseChains() []ruled {
	f := r.Table.Family
	base := func(name string, hook nft.Hook, priority int32) nft.Chain {
		return nft.Chain{Table: r.Table, Name: name, Hook: hook, Type: "nat", Priority: priority}
	}
	dispatch := []nft.Rule{nft.NewRule(
		nft.PriorityMap(r.Services, nft.Daddr(f), nft.L4Proto(), nft.Dport()), nft.Vmap(r.Counts, nft.Priority()))}
	return []ruled{
		{base("nat-prerouting", nft.Prerouting, nft.DstNAT), dispatch},
		{base("nat-output", nft.Output, nft.DstNAT), dispatch},
		{base("nat-postrouting", nft.Postrouting, nft.SrcNAT), []nft.Rule{
			{Comment: "a pod that reached itself", Parts: []nft.Part{
				nft.In(r.Hairpin, nft.Saddr(f), nft.Daddr(f)), nft.StatusDNAT(), nft.Masquerade()}},
			{Comment: "the client is no pod of this node", Parts: []nft.Part{
				nft.MarkHas(MarkBit), nft.StatusDNAT(), nft.MarkClear(MarkBit), nft.Masquerade()}},
		}},
	}
}

func (c ruled) create(tx *nft.Tx) {
	tx.CreateChain(c.chain)
	for _, r := range c.rules {
		tx.AddRule(c.chain, r)
	}
}

// skeleton adds the table anew, its maps and sets, and the chain that refuses: all
// that is always there, except what puts it in force.
func (r Ruleset) skeleton(tx *nft.Tx) {
	tx.AddTable(r.Table)
	tx.DeleteTable(r.Table)
	tx.AddTable(r.Table)
	for _, s := range []nft.Set{r.Services, r.Counts, r.Endpoints, r.Pods, r.Hairpin} {
		tx.AddSet(s)
	}
	r.refuseChain().create(tx)
	tx.CreateElements(r.Counts, r.count(0))
}

// count is the element of the map Counts for n endpoints.
func (r Ruleset) count(n int) nft.Element {
	return nft.Element{Key: nft.Concat(nil).Mark(uint32(n)), Verdict: nft.Verdict{Code: nft.GoTo, Chain: lb(n)}}
}

// Fits says whether the chains and rules of a table are those of this layout, in
// force and unchanged, so that its maps may be adopted.
func (r Ruleset) Fits(chains []nft.Chain, rules []nft.RuleInfo) bool {
	want := append(r.baseChains(), r.refuseChain())
	for _, c := range chains {
		if n := lbCount(c.Name); n > 0 {
			want = append(want, r.lbChain(n))
		}
	}
	var wanted []nft.RuleInfo
	for _, w := range want {
		if !slices.Contains(chains, w.chain) {
			return false
		}
		for _, rule := range w.rules {
			wanted = append(wanted, rule.Info(w.chain.Name))
		}
	}
	byChain := func(a, b nft.RuleInfo) int { return cmp.Compare(a.Chain, b.Chain) }
	rules = slices.Clone(rules)
	slices.SortStableFunc(rules, byChain)
	slices.SortStableFunc(wanted, byChain)
	return len(want) == len(chains) && slices.EqualFunc(rules, wanted, func(a, b nft.RuleInfo) bool {
		return a.Chain == b.Chain && a.Comment == b.Comment && slices.Equal(a.Exprs, b.Exprs)
	})
}

// lbCount gives the N of a chain lb<N>, 0 for any other chain.
func lbCount(name string) int {
	digits, ok := strings.CutPrefix(name, "lb")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || lb(n) != name {
		return 0
	}
	return n
}
