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
	d := &differ{emit: emit, tx: &nft.Tx{}}
	next := *a
	next.chains = maps.Clone(a.chains)
	var unused []string
	for _, n := range slices.Sorted(maps.Keys(a.chains)) {
		if a.uses[n] == 0 {
			d.tx.DeleteElements(a.rules.chainsOf(n), nft.Element{Key: n.mark()})
			unused = append(unused, n.chain())
			delete(next.chains, n)
		}
	}
	specials, ends := map[cluster.Key]*specialChain{}, map[cluster.Key]*endChain{}
	for _, k := range a.specials.Keys() {
		s := a.specials.Get(k)
		if s.uses > 0 {
			continue
		}
		if s.number != 0 {
			d.tx.DeleteElements(a.rules.Chains, nft.Element{Key: s.number.mark()})
		}
		unused = append(unused, k.Name)
		specials[k] = nil
		a.leave(s, ends)
	}
	d.flush()
	for _, name := range inOrderOfUse(unused) {
		d.tx.DeleteChain(a.rules.chain(name))
		d.cut()
	}
	for _, k := range a.ends.Keys() {
		e := a.ends.Get(k)
		if of, ok := ends[k]; ok {
			e = of
		}
		if e.chains == 0 {
			d.tx.DeleteChain(a.rules.chain(endPrefix + k.Name))
			d.tx.DeleteSet(a.rules.endSet(k.Name, 0))
			ends[k] = nil
			d.cut()
		}
	}
	d.flush()
	next.specials, next.ends = a.specials.With(specials), a.ends.With(ends)
	return &next, d.err
}

// leave counts that a special chain no longer leads to its endpoints.
func (a *Applied) leave(s *specialChain, ends map[cluster.Key]*endChain) {
	for _, id := range s.ends {
		k := cluster.Key{Name: id}
		if ends[k] == nil {
			e := *a.ends.Get(k)
			ends[k] = &e
		}
		ends[k].chains--
	}
}
