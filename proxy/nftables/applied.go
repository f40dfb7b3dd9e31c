package nftables

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// Applied is what one table in the kernel is believed to have. It never changes:
// Diff gives the next one.
//
// A proxy.Table has no history, but the slots of the endpoints map do: where an
// endpoint sits depends on what was there before it, so that a change moves one
// slot and not all. Applied remembers that.
type Applied struct {
	rules  Ruleset
	table  cluster.Map[proxy.Entry] // the Table it was last brought to
	fronts cluster.Map[front]       // by the key of the element in the services map
	uses   map[int]int              // number of endpoints → frontends that have so many
	chains map[int]bool             // lb<N> that exist
	pods   []netip.Addr             // sorted
	// contested are the fronts that more than one Service wants.
	contested cluster.Map[front]
	// adopted says that fronts may hold some that no Service wants.
	adopted bool
	// orphans are the N of chains lb<N> that were to be deleted when the former
	// agent was killed.
	orphans []int
}

// front is an element of the services map with its slots. It never changes.
type front struct {
	claims  []cluster.Key // the Services that want it, sorted: the first has it
	comment string        // of the element in the kernel; "" where there is none
	count   int           // slots in the kernel
	// slots are the endpoints by slot. After Adopt they are not known: nil while
	// count is not 0.
	slots []netip.AddrPort
}

// Ruleset names the objects of the table.
func (a *Applied) Ruleset() Ruleset { return a.rules }

// Problems are the frontends that several Services want. They are few: this walks
// only them.
func (a *Applied) Problems() []cluster.Problem {
	var ps []cluster.Problem
	for key, f := range a.contested.All() {
		for _, loser := range f.claims[1:] {
			ps = append(ps, cluster.Problem{Kind: "Service", Key: loser, Field: "spec.ports",
				Err: fmt.Sprintf("%s is already that of Service %s, which goes on having it",
					a.rules.Services.ElementText(nft.Element{Key: []byte(key.Name)}, true), f.claims[0])})
		}
	}
	slices.SortFunc(ps, func(a, b cluster.Problem) int { return a.Key.Compare(b.Key) })
	return ps
}

// fresh is the Applied of a table that has just been made by skeleton.
func fresh(r Ruleset) *Applied {
	return &Applied{rules: r, uses: map[int]int{}, chains: map[int]bool{}}
}

// State is what Adopt needs of a table in the kernel: not its endpoints, since
// reading a big map takes long.
type State struct {
	Chains                 []nft.Chain
	Rules                  []nft.RuleInfo
	Services, Counts, Pods []nft.Element
}

// Adopt takes over a table that an agent of the same Layout left in the kernel.
// The next Diff writes the Services whose comment, that is owner and endpoints,
// is not as wanted, and removes what nobody wants. It gives false where the table
// does not fit and has to be built anew with Load.
func Adopt(r Ruleset, s State) (*Applied, bool) {
	if !r.Fits(s.Chains, s.Rules) {
		return nil, false
	}
	a := fresh(r)
	a.adopted = true
	for _, c := range s.Chains {
		if n := lbCount(c.Name); n > 0 {
			a.chains[n] = true
		}
	}
	if !a.adoptCounts(s.Counts) || !a.adoptServices(s.Services) {
		return nil, false
	}
	for _, e := range s.Pods {
		if pod, ok := netip.AddrFromSlice(e.Key); ok {
			a.pods = append(a.pods, pod)
		}
	}
	slices.SortFunc(a.pods, netip.Addr.Compare)
	return a, true
}

// adoptCounts checks that the elements are those of the chains. A chain without
// one is an orphan.
func (a *Applied) adoptCounts(es []nft.Element) bool {
	seen := map[int]bool{}
	for _, e := range es {
		n := number(e.Key)
		if n < 0 || n > 0 && !a.chains[n] || e.Verdict != a.rules.count(n).Verdict {
			return false
		}
		seen[n] = true
	}
	for n := range a.chains {
		if !seen[n] {
			a.orphans = append(a.orphans, n)
			delete(a.chains, n)
		}
	}
	slices.Sort(a.orphans)
	return seen[0]
}

func (a *Applied) adoptServices(es []nft.Element) bool {
	set := make(map[cluster.Key]*front, len(es))
	for _, e := range es {
		n := number(e.Data)
		if n < 0 || n > 0 && !a.chains[n] || e.Comment == "" {
			return false
		}
		set[cluster.Key{Name: string(e.Key)}] = &front{comment: e.Comment, count: n}
		a.uses[n]++
	}
	a.fronts = a.fronts.With(set)
	return true
}

// number reads a mark, or gives -1.
func number(b []byte) int {
	if len(b) != 4 {
		return -1
	}
	return int(binary.NativeEndian.Uint32(b))
}

// frontKey is the key of a frontend's element in the services map.
func frontKey(p cluster.Protocol, a netip.AddrPort) cluster.Key {
	buf := make(nft.Concat, 0, 24)
	return cluster.Key{Name: string(buf.Addr(a.Addr()).Proto(uint8(p)).Port(a.Port()))}
}

// comment tells the owner of a frontend and, by a hash, its endpoints. Two
// frontends of one port have the same.
func comment(service cluster.Key, port string, backends []netip.AddrPort) string {
	h := fnv.New64a()
	buf := make([]byte, 0, 18)
	for _, b := range backends {
		a := b.Addr().As16()
		_, _ = h.Write(append(append(buf, a[:]...), byte(b.Port()>>8), byte(b.Port())))
	}
	owner := service.String()
	if port != "" {
		owner += ":" + port
	}
	sum := h.Sum64()
	tail := fmt.Sprintf(" #%012x", (sum^sum>>48)&(1<<48-1))
	return owner[:min(len(owner), nft.MaxComment-len(tail))] + tail
}
