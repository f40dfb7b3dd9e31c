package nftables

import (
	"fmt"
	"hash/fnv"
	"net/netip"

	"github.com/podlane/podlane/kernel/nft"
)

// goal is where a number leads: a plain chain, or one of the few that do not
// follow from a count. The name of a special chain has a hash of all that is in
// it: what changes is another chain, and the old one goes when it is quiet.
type goal struct {
	number number // of a plain chain; of a special one it is given later
	// name is that of a special chain.
	name   string
	sticky *sticky
	ranges []netip.Prefix // of a chain of source ranges
}

// String tells goals apart.
func (g goal) String() string {
	if g.name != "" {
		return g.name
	}
	return fmt.Sprintf("%x", uint32(g.number))
}

// sticky is a chain of a port with affinity. Each endpoint has a set of the
// clients that came to it, which the sets of other endpoints may hold no longer.
type sticky struct {
	owner    string // "namespace/name:port", protocol
	seconds  uint32
	count    bool
	backends []netip.AddrPort
	head     number // its bits say how the chain begins
	inside   string // with the bit local, the chain for clients on this node
}

func stickyGoal(s sticky) goal {
	h := newHash(s.owner, fmt.Sprint(s.seconds, s.count, s.head), s.inside).addrPorts(s.backends)
	if s.head&forInside != 0 {
		return goal{name: stickyInside + h.String(), sticky: &s}
	}
	return goal{name: "sticky-" + h.String(), sticky: &s}
}

// rangesGoal is the same for all frontends with the same ranges.
func rangesGoal(ranges []netip.Prefix) goal {
	h := newHash()
	for _, r := range ranges {
		h = h.text(r.String())
	}
	return goal{name: sources + h.String(), ranges: ranges}
}

// end is an endpoint of one port with affinity: a chain that leads to it and the
// set of its clients.
type end struct {
	id string
	sticky
	to netip.AddrPort
}

func (s sticky) ends() []end {
	ends := make([]end, 0, len(s.backends))
	for _, b := range s.backends {
		h := newHash(s.owner, fmt.Sprint(s.seconds, s.count)).addrPorts([]netip.AddrPort{b})
		ends = append(ends, end{h.String(), s, b})
	}
	return ends
}

func (r Ruleset) endSet(id string, seconds uint32) nft.Set {
	return nft.Set{Table: r.Table, Name: "affinity-" + id, Key: []nft.Type{nft.AddrType(r.Table.Family)}, Timeout: seconds}
}

// The names of special chains to which no number leads, but a rule of another
// chain or the map Sources. A chain of the latter kind stands for itself, so that
// the kernel has not to follow all from each when it looks for loops.
const (
	stickyInside = "sticky-inside-"
	sources      = "sources-"
)

const endPrefix = "to-"

// endChain notes the client and sends it to the endpoint. These are two rules: in
// a set that is full there is no room for the client, but it goes on.
func (r Ruleset) endChain(e end) ruled {
	to := nft.Rule{Parts: []nft.Part{nft.DNAT(e.to)}, Comment: clip(e.owner + " " + e.to.String())}
	if e.count {
		to.Parts = []nft.Part{nft.Count(), nft.DNAT(e.to)}
	}
	return ruled{r.chain(endPrefix + e.id), []nft.Rule{
		nft.NewRule(nft.Update(r.endSet(e.id, e.seconds), nft.Saddr(r.Table.Family))), to}}
}

// goalChain is the chain of a special goal.
func (r Ruleset) goalChain(g goal) ruled {
	if g.sticky != nil {
		return r.stickyChain(g)
	}
	c := ruled{chain: r.chain(g.name)}
	for _, p := range g.ranges {
		c.rules = append(c.rules, nft.Rule{Comment: p.String(), Parts: []nft.Part{
			nft.Within(nft.Saddr(r.Table.Family), p), nft.Do(nft.Return, "")}})
	}
	c.rules = append(c.rules, nft.NewRule(nft.Do(nft.Drop, "")))
	return c
}

// stickyChain sends a client to the endpoint that it had, else to any, each as
// likely: the first of n takes one in n, the next one in n-1 of the rest, ...
func (r Ruleset) stickyChain(g goal) ruled {
	s := g.sticky
	c := ruled{r.chain(g.name), r.headRules(s.head, s.inside)}
	c.rules[0].Comment = clip(fmt.Sprintf("%s, affinity for %d s", s.owner, s.seconds))
	saddr := nft.Saddr(r.Table.Family)
	ends := s.ends()
	for _, e := range ends {
		c.rules = append(c.rules, nft.Rule{Comment: e.to.String(), Parts: []nft.Part{
			nft.In(r.endSet(e.id, s.seconds), saddr), nft.Do(nft.GoTo, endPrefix+e.id)}})
	}
	for i, e := range ends {
		c.rules = append(c.rules, nft.Rule{Comment: e.to.String(), Parts: []nft.Part{
			nft.OneIn(len(ends) - i), nft.Do(nft.GoTo, endPrefix+e.id)}})
	}
	if len(ends) == 0 {
		c.rules = append(c.rules, nft.NewRule(nft.Do(nft.Drop, "")))
	}
	return c
}

func clip(comment string) string { return comment[:min(len(comment), nft.MaxComment)] }

// hash is of 48 bits: enough for the few thousand things that one name space has.
type hash uint64

func newHash(texts ...string) hash {
	h := fnv.New64a()
	v := hash(h.Sum64())
	for _, t := range texts {
		v = v.text(t)
	}
	return v
}

// text mixes in a text and its end.
func (h hash) text(s string) hash {
	for i := range len(s) {
		h = (h ^ hash(s[i])) * 1099511628211
	}
	return (h ^ 0xff) * 1099511628211
}

func (h hash) addrPorts(as []netip.AddrPort) hash {
	for _, b := range as {
		a := b.Addr().As16()
		for _, c := range a {
			h = (h ^ hash(c)) * 1099511628211
		}
		h = (h ^ hash(b.Port()>>8)) * 1099511628211
		h = (h ^ hash(b.Port()&0xff)) * 1099511628211
	}
	return h.text("")
}

func (h hash) String() string { return fmt.Sprintf("%012x", uint64(h^h>>48)&(1<<48-1)) }
