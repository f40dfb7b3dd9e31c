package nftables

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// State is what Adopt needs of a table in the kernel: not its endpoints, since
// reading a big map takes long.
type State struct {
	Chains   []nft.Chain
	Rules    []nft.RuleInfo
	Elements map[string][]nft.Element // of Ruleset.Adopted, by name
}

// adopted is what was found and not yet compared with what is wanted.
type adopted struct {
	specials map[string]number         // with their numbers
	uses     map[string]int            // the fronts that lead to them
	names    map[number]string         // the same the other way round
	rules    map[string][]nft.RuleInfo // of the special chains and those of endpoints
	// orphans are chains that were to be deleted when the former agent was killed.
	orphans []string
}

// Adopt takes over a table that an agent of the same Layout left in the kernel.
// The next Diff writes the Services whose comment, that is owner and endpoints,
// is not as wanted, and removes what nobody wants. It gives false where the table
// does not fit and has to be built anew with Load.
func Adopt(r Ruleset, s State) (*Applied, bool) {
	a := fresh(r)
	a.adopted = &adopted{specials: map[string]number{}, uses: map[string]int{}, names: map[number]string{}, rules: map[string][]nft.RuleInfo{}}
	for _, rule := range s.Rules {
		switch rule.Chain {
		case nodePorts:
			a.nodePorts = appendPrefix(a.nodePorts, rule.Comment)
		case serviceCIDRs:
			a.cidrs = appendPrefix(a.cidrs, rule.Comment)
		}
		if isSpecial(rule.Chain) || isEnd(rule.Chain) {
			a.adopted.rules[rule.Chain] = append(a.adopted.rules[rule.Chain], rule)
		}
	}
	if !a.fits(s.Chains, s.Rules) || !a.adoptNumbers(s.Chains, slices.Concat(s.Elements[r.Chains.Name], s.Elements[r.InsideChains.Name])) || !a.adoptFronts(s.Elements) {
		return nil, false
	}
	return a, a.adoptPods(s.Elements)
}

// adoptPods takes the node's pods, of which both sets must be.
func (a *Applied) adoptPods(elements map[string][]nft.Element) bool {
	hairpins := map[string]bool{}
	for _, e := range elements[a.rules.Hairpin.Name] {
		hairpins[string(e.Key)] = true
	}
	for _, e := range elements[a.rules.Pods.Name] {
		pod, ok := netip.AddrFromSlice(e.Key)
		if !ok || !hairpins[string(hairpinElement(pod).Key)] {
			return false
		}
		a.pods = append(a.pods, pod)
	}
	slices.SortFunc(a.pods, netip.Addr.Compare)
	return len(hairpins) == len(a.pods)
}

// appendPrefix adds the prefix that is the comment of a rule; what is none makes
// the rules not fit.
func appendPrefix(ps []netip.Prefix, comment string) []netip.Prefix {
	p, _ := netip.ParsePrefix(comment)
	return append(ps, p)
}

func isSpecial(chain string) bool {
	return strings.HasPrefix(chain, "sticky-") || strings.HasPrefix(chain, sources)
}

// unnumbered says that no number leads to a special chain.
func unnumbered(chain string) bool {
	return strings.HasPrefix(chain, stickyInside) || strings.HasPrefix(chain, sources)
}

func isEnd(chain string) bool { return strings.HasPrefix(chain, endPrefix) }

// fits says whether the chains and rules of a table are those of this layout, in
// force and unchanged. Special chains are compared where they are wanted.
func (a *Applied) fits(chains []nft.Chain, rules []nft.RuleInfo) bool {
	r := a.rules
	for _, p := range slices.Concat(a.nodePorts, a.cidrs) {
		if !p.IsValid() || p.Addr().Is6() != (r.Table.Family == nft.IPv6) {
			return false
		}
	}
	want := slices.Concat(r.fixedChains(), r.baseChains(),
		[]ruled{r.nodePortsChain(a.nodePorts), r.serviceCIDRsChain(a.cidrs), r.dispatchChain()})
	known := 0
	for _, c := range chains {
		if n, ok := numberOf(c.Name); ok {
			want = append(want, r.numberChain(n))
		} else if isSpecial(c.Name) || isEnd(c.Name) {
			known++
		}
	}
	var wanted []nft.RuleInfo
	for _, w := range want {
		if !slices.Contains(chains, w.chain) {
			return false
		}
		wanted = append(wanted, w.info()...)
	}
	rules = slices.DeleteFunc(slices.Clone(rules), func(i nft.RuleInfo) bool { return isSpecial(i.Chain) || isEnd(i.Chain) })
	byChain := func(a, b nft.RuleInfo) int { return cmp.Compare(a.Chain, b.Chain) }
	slices.SortStableFunc(rules, byChain)
	slices.SortStableFunc(wanted, byChain)
	return len(want)+known == len(chains) && sameRules(rules, wanted)
}

func (c ruled) info() []nft.RuleInfo {
	var infos []nft.RuleInfo
	for _, rule := range c.rules {
		infos = append(infos, rule.Info(c.chain.Name))
	}
	return infos
}

func sameRules(a, b []nft.RuleInfo) bool {
	return slices.EqualFunc(a, b, func(a, b nft.RuleInfo) bool {
		return a.Chain == b.Chain && a.Comment == b.Comment && slices.Equal(a.Exprs, b.Exprs)
	})
}

// adoptNumbers checks that the elements of the map Chains are those of the
// chains. A chain without one is an orphan.
func (a *Applied) adoptNumbers(chains []nft.Chain, es []nft.Element) bool {
	exists := map[string]bool{}
	for _, c := range chains {
		exists[c.Name] = true
	}
	seen := map[string]bool{}
	fixed := 0
	for _, e := range es {
		n, ok := parse(e.Key)
		name := e.Verdict.Chain
		switch {
		case ok && n == dropped && e.Verdict.Code == nft.Drop:
			fixed++
			continue
		case !ok || e.Verdict.Code != nft.GoTo || !exists[name]:
			return false
		case n == refused && name == refuse:
			fixed++
		case n.plain() && name == n.chain():
			a.chains[n] = true
		case n&special != 0 && isSpecial(name) && !unnumbered(name) && !seen[name]:
			a.adopted.specials[name], a.adopted.names[n] = n, name
			a.last = max(a.last, n)
		default:
			return false
		}
		seen[name] = true
	}
	for name := range exists {
		if unnumbered(name) {
			a.adopted.specials[name] = 0
			continue
		}
		if _, plain := numberOf(name); (plain || isSpecial(name)) && !seen[name] {
			a.adopted.orphans = append(a.adopted.orphans, name)
		}
	}
	slices.Sort(a.adopted.orphans)
	return fixed == 2
}

// adoptFronts takes the fronts with their numbers, from which follows how many
// slots each has.
func (a *Applied) adoptFronts(elements map[string][]nft.Element) bool {
	set := map[cluster.Key]*front{}
	for _, s := range []nft.Set{a.rules.Services, a.rules.NodePorts} {
		for _, e := range elements[s.Name] {
			to, ok := a.adoptRef(e.Data)
			if !ok || e.Comment == "" {
				return false
			}
			set[cluster.Key{Name: string(e.Key)}] = &front{there: true, comment: e.Comment, to: *to}
		}
	}
	for _, s := range []nft.Set{a.rules.Inside, a.rules.NodePortInside} {
		for _, e := range elements[s.Name] {
			f := set[cluster.Key{Name: string(e.Key)}]
			of, ok := a.adoptRef(e.Data)
			if !ok || f == nil {
				return false
			}
			f.inside = of
		}
	}
	for _, e := range elements[a.rules.Sources.Name] {
		f := set[cluster.Key{Name: string(e.Key)}]
		if _, ok := a.adopted.specials[e.Verdict.Chain]; !ok || f == nil {
			return false
		}
		f.sources = &ref{name: e.Verdict.Chain}
	}
	for _, f := range set {
		f.slotCount, f.localCount = f.counts()
		for _, r := range f.refs() {
			if r.number.plain() {
				a.uses[r.number]++
			} else if r.name != "" {
				a.adopted.uses[r.name]++
			}
		}
	}
	for _, e := range elements[a.rules.ClusterIPs.Name] {
		set[cluster.Key{Name: string(e.Key)}] = &front{there: true}
	}
	a.fronts = a.fronts.With(set)
	return true
}

// adoptRef reads a number that must have a chain.
func (a *Applied) adoptRef(data []byte) (*ref, bool) {
	n, ok := parse(data)
	if !ok {
		return nil, false
	}
	if n == refused || n == dropped || n.plain() && a.chains[n] {
		return &ref{number: n}, true
	}
	name := a.adopted.names[n]
	return &ref{n, name}, name != ""
}

func (f *front) refs() []ref {
	rs := []ref{f.to}
	for _, r := range []*ref{f.sources, f.inside} {
		if r != nil {
			rs = append(rs, *r)
		}
	}
	return rs
}

// counts are the numbers of slots that the numbers of the front tell.
func (f *front) counts() (slots, locals int) {
	to := f.to.number
	if !to.plain() {
		return 0, 0
	}
	if to&local == 0 {
		return to.count(), 0
	}
	if f.inside != nil {
		slots = f.inside.number.count()
	}
	return slots, to.count()
}
