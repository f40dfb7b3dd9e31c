package nftables

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// goals counts during a Diff what fronts lead to, and makes the special chains
// that are new.
type goals struct {
	next     *Applied
	found    *adopted
	specials map[string]*specialWork
	ends     map[string]*endWork
}

// specialWork is a special chain during a Diff.
type specialWork struct {
	specialChain
	exists, was bool  // in the kernel; in use before
	unchecked   bool  // found by Adopt, and not yet compared
	create      *goal // it is to be made
}

// endWork is an endpoint with affinity during a Diff.
type endWork struct {
	endChain
	was    int  // live before
	old    bool // in the kernel
	create *end
}

func newGoals(a, next *Applied) *goals {
	return &goals{next: next, found: a.adopted, specials: map[string]*specialWork{}, ends: map[string]*endWork{}}
}

// release notes that a front no longer leads somewhere.
func (gs *goals) release(r ref) {
	if r.number.plain() {
		gs.next.uses[r.number]--
		if gs.next.uses[r.number] == 0 {
			delete(gs.next.uses, r.number)
		}
	}
	if r.name != "" {
		gs.special(r.name).uses--
	}
}

// take notes that a front leads somewhere.
func (gs *goals) take(g goal) error {
	if g.name == "" {
		if g.number.plain() {
			gs.next.uses[g.number]++
		}
		return nil
	}
	s := gs.special(g.name)
	s.uses++
	switch {
	case s.unchecked:
		return gs.check(s, g)
	case s.exists || s.create != nil:
		return nil
	case gs.next.last+1 >= special<<1:
		return fmt.Errorf("%w: no number is left for another chain", ErrDoubt)
	}
	s.create = &g
	if g.sticky == nil {
		return nil
	}
	if !unnumbered(g.name) {
		gs.next.last++
		s.number = gs.next.last
	}
	return gs.addEnds(s, g.sticky.ends(), false)
}

// addEnds notes that a chain leads to endpoints; live says that it did so before.
func (gs *goals) addEnds(s *specialWork, ends []end, live bool) error {
	for _, e := range ends {
		s.ends = append(s.ends, e.id)
		w := gs.end(e.id)
		w.chains++
		w.seconds = e.seconds
		if !w.old && w.create == nil {
			if err := gs.findEnd(w, e); err != nil {
				return err
			}
		}
		if live {
			w.was = max(w.was, 1) // whoever came before still counts
		}
	}
	return nil
}

// findEnd takes over the chain of an endpoint that Adopt found, or has it made.
func (gs *goals) findEnd(w *endWork, e end) error {
	c := gs.next.rules.endChain(e)
	if gs.found == nil || gs.found.rules[c.chain.Name] == nil {
		w.create = &e
		return nil
	}
	w.old = true
	if !sameRules(gs.found.rules[c.chain.Name], c.info()) {
		return fmt.Errorf("%w: chain %s", ErrDoubt, c.chain)
	}
	return nil
}

func (gs *goals) special(name string) *specialWork {
	if s, ok := gs.specials[name]; ok {
		return s
	}
	s := &specialWork{}
	if old := gs.next.specials.Get(cluster.Key{Name: name}); old != nil {
		s.specialChain, s.exists, s.was = *old, true, old.uses > 0
	} else if gs.found != nil {
		n, ok := gs.found.specials[name]
		s.number, s.uses, s.exists, s.unchecked = n, gs.found.uses[name], ok, ok
	}
	gs.specials[name] = s
	return s
}

func (gs *goals) end(id string) *endWork {
	if e, ok := gs.ends[id]; ok {
		return e
	}
	e := &endWork{}
	if old := gs.next.ends.Get(cluster.Key{Name: id}); old != nil {
		e.endChain, e.was, e.old = *old, old.live, true
	}
	gs.ends[id] = e
	return e
}

// check compares a chain that Adopt found, and those of its endpoints, with what
// they should be.
func (gs *goals) check(s *specialWork, g goal) error {
	s.unchecked = false
	r := gs.next.rules
	if c := r.goalChain(g); !sameRules(gs.found.rules[g.name], c.info()) {
		return fmt.Errorf("%w: chain %s", ErrDoubt, c.chain)
	}
	if g.sticky == nil {
		return nil
	}
	return gs.addEnds(s, g.sticky.ends(), true)
}

// number gives the number that was given to a goal.
func (gs *goals) number(g goal) ref {
	if g.name == "" {
		return ref{number: g.number}
	}
	return ref{gs.specials[g.name].number, g.name}
}

// create makes what is new: the endpoints, the chains to them, last the numbers
// of these. cut may end the transaction, and gives the next one.
func (gs *goals) create(tx *nft.Tx, r Ruleset, cut func() *nft.Tx) {
	for _, name := range slices.Sorted(maps.Keys(gs.specials)) {
		gs.settle(gs.specials[name])
	}
	for _, id := range slices.Sorted(maps.Keys(gs.ends)) {
		switch e := gs.ends[id]; {
		case e.create != nil:
			tx.AddSet(r.endSet(id, e.seconds))
			r.endChain(*e.create).create(tx)
		case e.old && e.was == 0 && e.live > 0:
			tx.FlushSet(r.endSet(id, e.seconds)) // it had left: nobody belongs to it any more
		}
		tx = cut()
	}
	for _, name := range slices.Backward(inOrderOfUse(slices.Collect(maps.Keys(gs.specials)))) {
		s := gs.specials[name]
		if s.create == nil {
			continue
		}
		r.goalChain(*s.create).create(tx)
		if s.number != 0 {
			tx.CreateElements(r.Chains, r.element(s.number, name))
		}
		tx = cut()
	}
}

// inOrderOfUse sorts chains so that each comes before those that its rules go to.
func inOrderOfUse(names []string) []string {
	slices.SortFunc(names, func(a, b string) int {
		last := func(s string) int {
			if strings.HasPrefix(s, stickyInside) {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(last(a), last(b)), cmp.Compare(a, b))
	})
	return names
}

// settle counts for its endpoints whether a chain is in use.
func (gs *goals) settle(s *specialWork) {
	by := 0
	switch now := s.uses > 0; {
	case now && !s.was:
		by = 1
	case !now && s.was:
		by = -1
	}
	for _, id := range s.ends {
		gs.end(id).live += by
	}
}

// finish keeps the counts in next.
func (gs *goals) finish(next, old *Applied) {
	specials, ends := map[cluster.Key]*specialChain{}, map[cluster.Key]*endChain{}
	if gs.found != nil {
		gs.keepFound(specials, ends)
	}
	for name, s := range gs.specials {
		specials[cluster.Key{Name: name}] = &s.specialChain
	}
	for id, e := range gs.ends {
		ends[cluster.Key{Name: id}] = &e.endChain
	}
	next.specials, next.ends = old.specials.With(specials), old.ends.With(ends)
}

// keepFound keeps what Adopt found and nobody wants, for Tidy.
func (gs *goals) keepFound(specials map[cluster.Key]*specialChain, ends map[cluster.Key]*endChain) {
	for name, n := range gs.found.specials {
		specials[cluster.Key{Name: name}] = &specialChain{number: n}
	}
	for name := range gs.found.rules {
		if isEnd(name) {
			ends[cluster.Key{Name: name[len(endPrefix):]}] = &endChain{}
		}
	}
}
