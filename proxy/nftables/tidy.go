package nftables

import (
	"maps"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// Tidy removes the chains that no Service uses. It should not come at once after
// a Diff, but a second later: packets may be on their way to such a chain, and
// kernels before 6.2 release the use of a chain late.
func Tidy(a *Applied, emit Emit) (*Applied, error) {
	next := *a
	next.chains = maps.Clone(a.chains)
	t := tidier{differ: differ{emit: emit, tx: &nft.Tx{}, rules: a.rules, old: a, next: &next},
		specials: map[cluster.Key]*specialChain{}, ends: map[cluster.Key]*endChain{}}
	t.numbers()
	t.flush()
	t.chains()
	t.lastEnds()
	t.flush()
	next.specials, next.ends = a.specials.With(t.specials), a.ends.With(t.ends)
	return &next, t.err
}

// tidier is one run of Tidy.
type tidier struct {
	differ
	unused   []string
	specials map[cluster.Key]*specialChain // nil: gone
	ends     map[cluster.Key]*endChain
}

// numbers deletes the numbers by which chains are found.
func (t *tidier) numbers() {
	for _, n := range slices.Sorted(maps.Keys(t.old.chains)) {
		if t.old.uses[n] == 0 {
			t.tx.DeleteElements(t.rules.chainsOf(n), nft.Element{Key: n.mark()})
			t.unused = append(t.unused, n.chain())
			delete(t.next.chains, n)
		}
	}
	for _, k := range t.old.specials.Keys() {
		s := t.old.specials.Get(k)
		if s.uses > 0 {
			continue
		}
		if s.number != 0 {
			t.tx.DeleteElements(t.rules.Chains, nft.Element{Key: s.number.mark()})
		}
		t.unused = append(t.unused, k.Name)
		t.specials[k] = nil
		t.leave(s)
	}
}

// leave counts that a special chain no longer leads to its endpoints.
func (t *tidier) leave(s *specialChain) {
	for _, id := range s.ends {
		k := cluster.Key{Name: id}
		if t.ends[k] == nil {
			e := *t.old.ends.Get(k)
			t.ends[k] = &e
		}
		t.ends[k].chains--
	}
}

// chains deletes the chains.
func (t *tidier) chains() {
	for _, name := range inOrderOfUse(t.unused) {
		t.tx.DeleteChain(t.rules.chain(name))
		t.cut()
	}
}

// lastEnds deletes what is of endpoints to which no chain leads any more.
func (t *tidier) lastEnds() {
	for _, k := range t.old.ends.Keys() {
		e := t.old.ends.Get(k)
		if of, ok := t.ends[k]; ok {
			e = of
		}
		if e.chains == 0 {
			t.tx.DeleteChain(t.rules.chain(endPrefix + k.Name))
			t.tx.DeleteSet(t.rules.endSet(k.Name, 0))
			t.ends[k] = nil
			t.cut()
		}
	}
}
