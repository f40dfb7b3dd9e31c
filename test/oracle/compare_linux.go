package oracle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/packet"
	"github.com/podlane/podlane/test/oracle/world"
)

// mismatch is a group whose connections meet different things.
type mismatch struct {
	Step  int    // after which
	Group string // client and destination
	Why   string
}

func (m mismatch) String() string {
	return fmt.Sprintf("after step %d, %s: %s", m.Step, m.Group, m.Why)
}

// sides are the two nodes.
type sides struct {
	kube *kubeProxy
	ours *podlane
	r    *rand.Rand

	nodePortAddresses []string
	before            *history.State // at the last look
	tries             int
	flows             []*flow
	loyals            map[string]*loyal // by group
	disturbed         bool              // by the last step
	even              [2]evenness
}

// both runs f for each node at the same time.
func both(f func(side int) error) error {
	var errs [2]error
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}

func (s *sides) world(side int) *world.World {
	return []*world.World{s.kube.World, s.ours.World}[side]
}

func (s *sides) shoot(side int, shots []world.Shot) ([]world.Outcome, error) {
	if side == 0 {
		return s.kube.Shoot(shots)
	}
	return s.ours.shoot(shots)
}

// volley are shots of groups, the same for both nodes.
type volley struct {
	shots []world.Shot
	of    []*group
}

func (v *volley) add(g *group, source netip.Addr) {
	v.shots = append(v.shots, world.Shot{From: g.client.from, Source: source, Protocol: g.protocol, To: g.to})
	v.of = append(v.of, g)
}

// try makes as many connections of a group.
func (v *volley) try(g *group, r *rand.Rand, times int) {
	for range times {
		if source := g.client.source(r, g); source.IsValid() {
			v.add(g, source)
		}
	}
}

// fire shoots at both nodes and gives the outcomes of each.
func (s *sides) fire(v volley) ([2][]world.Outcome, error) {
	s.tries += len(v.shots)
	var out [2][]world.Outcome
	err := both(func(side int) (err error) {
		out[side], err = s.shoot(side, v.shots)
		return err
	})
	return out, err
}

// tally fires and takes down what was met. What Podlane's node did to each
// connection is compared with Lookup at once, since the source may matter.
func (s *sides) tally(v volley) error {
	out, err := s.fire(v)
	if err != nil {
		return err
	}
	for i, g := range v.of {
		for side := range out {
			g.seen[side][meetingOf(v.shots[i], out[side][i])]++
			if !g.affinity {
				s.even[side].add(g.backends, out[side][i].Dst)
			}
		}
		m := meetingOf(v.shots[i], out[1][i])
		if want := g.expected(s.ours.table, v.shots[i].Source); !want[m.plain()] {
			g.astray = fmt.Sprintf("Lookup does not expect that a connection from %s meets: %s", v.shots[i].Source, m)
		}
	}
	return nil
}

const (
	rounds = 6
	// perBackend are tries for each backend: that one of n is missed in k*n tries has
	// the probability of about exp(-k).
	firstTries, moreTries, confirmTries = 4, 12, 40
)

// compare looks at all groups, and again at those that differ: by chance a backend
// may not be met.
func (s *sides) compare(gs []*group) ([]*group, error) {
	if err := s.forget(); err != nil {
		return nil, err
	}
	pending, tries := gs, firstTries
	for range rounds {
		v := volley{}
		for _, g := range pending {
			v.try(g, s.r, max(2, tries*len(g.backends)))
		}
		if err := s.tally(v); err != nil {
			return nil, err
		}
		pending = slices.DeleteFunc(slices.Clone(pending), func(g *group) bool { return g.difference(s.ours.table) == "" })
		if len(pending) == 0 {
			return nil, nil
		}
		tries = moreTries
	}
	return s.confirm(pending)
}

// confirm looks once more, as if for the first time: a packet that a busy machine
// lost makes no mismatch.
func (s *sides) confirm(gs []*group) ([]*group, error) {
	v := volley{}
	for _, g := range gs {
		g.seen, g.astray = [2]map[meeting]int{{}, {}}, ""
		v.try(g, s.r, max(10, confirmTries*len(g.backends)))
	}
	if err := errors.Join(s.forget(), s.tally(v)); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(gs, func(g *group) bool { return g.difference(s.ours.table) == "" }), nil
}

func (s *sides) forget() error {
	return both(func(side int) error { return s.world(side).Forget() })
}

// difference says in words how the two nodes differ; "" is not at all.
func (g *group) difference(t *proxy.Table) string {
	if g.astray != "" {
		return g.astray
	}
	for side := range g.seen {
		for m := range g.seen[side] {
			if g.met(1-side, m) || g.affinity && m.what == "endpoint" && !g.client.fresh {
				continue
			}
			if slices.ContainsFunc(Wanted, func(w Difference) bool { return w.is(g) }) {
				return ""
			}
			return fmt.Sprintf("kube-proxy: %s. Podlane: %s", describe(g.seen[0]), describe(g.seen[1]))
		}
	}
	return ""
}

// met says that a side met the like of m. That TCP is refused in another way is a
// wanted difference.
func (g *group) met(side int, m meeting) bool {
	if g.seen[side][m] > 0 {
		return true
	}
	if m.what != "refused" || g.protocol != cluster.TCP {
		return false
	}
	other := m
	other.kind = packet.Reset
	if m.kind == packet.Reset {
		other.kind = packet.Unreachable
	}
	return g.seen[side][other] > 0
}
