package oracle

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/world"
)

// Run plays a history in two new nodes and compares after each step. It ends at the
// first step that shows mismatches, and gives these.
func Run(h history.History, c *Coverage) ([]mismatch, error) {
	s, err := newSides(h)
	if err != nil {
		return nil, err
	}
	defer s.close()
	defer func() {
		c.Tries += s.tries
		if s.ours.sockets != nil {
			c.AtSockets += s.ours.sockets.translated
		}
		for side := range s.even {
			c.Even[side].merge(s.even[side])
		}
	}()
	known := map[string]*corev1.Service{}
	for i, step := range h.Steps {
		if err := s.step(step); err != nil {
			return nil, fmt.Errorf("step %d: %w", i, err)
		}
		for _, change := range step {
			if change.Service != nil {
				known[fmt.Sprint(len(known))] = change.Service
			}
		}
		found, err := s.look(slices.Collect(maps.Values(known)), c)
		if err != nil {
			return nil, fmt.Errorf("step %d: %w", i, err)
		}
		for j := range found {
			found[j].Step = i
		}
		if len(found) > 0 {
			return found, nil
		}
	}
	return nil, s.ours.finish()
}

func newSides(h history.History) (*sides, error) {
	s := &sides{r: rand.New(rand.NewPCG(h.Seed, 1)), before: history.NewState(), even: [2]evenness{{}, {}}, nodePortAddresses: h.NodePortAddresses}
	var worlds [2]*world.World
	err := both(func(side int) (err error) {
		worlds[side], err = world.New(world.Config{Pods: history.PodRanges, Addrs: slices.Concat(history.NodeAddrs, history.OtherAddrs)}, side)
		return err
	})
	if err == nil {
		var err1, err2 error
		s.kube, err1 = newKubeProxy(worlds[0], h.NodePortAddresses)
		s.ours, err2 = newPodlane(worlds[1], h.NodePortAddresses)
		err = errors.Join(err1, err2)
	}
	if err != nil {
		for _, w := range worlds {
			if w != nil {
				w.Close()
			}
		}
		return nil, err
	}
	return s, nil
}

func (s *sides) close() {
	s.ours.close()
	if s.ours.sockets != nil {
		s.ours.sockets.end()
	}
	s.kube.Close()
	s.ours.Close()
}

func (s *sides) step(step history.Step) error {
	s.disturbed = disturbs(step)
	return both(func(side int) error {
		if err := s.bind(side, step); err != nil {
			return err
		}
		if side == 0 {
			return s.kube.step(step)
		}
		return s.ours.step(step)
	})
}

func (s *sides) bind(side int, step history.Step) error {
	for _, c := range step {
		if c.Bind == "" && c.Unbind == "" {
			continue
		}
		if err := s.world(side).Bind(netip.MustParseAddr(c.Bind+c.Unbind), c.Bind != ""); err != nil {
			return err
		}
	}
	return nil
}

// look compares what is there now: first the connections that were there before.
func (s *sides) look(known []*corev1.Service, c *Coverage) ([]mismatch, error) {
	found, err := s.follow(c)
	if err != nil {
		return nil, err
	}
	gs := slices.DeleteFunc(groups(targets(known), s.ours.state.Bound), func(g *group) bool { return !g.learn(s.ours.table, s.r) })
	differ, err := s.compare(gs)
	if err != nil {
		return nil, err
	}
	for _, g := range differ {
		found = append(found, mismatch{Group: g.String(), Why: g.difference(s.ours.table)})
	}
	c.count(gs, s.ours.state, s.before, s.nodePortAddresses)
	sticky, err1 := s.affinity(gs, c)
	answers, err2 := s.open(gs)
	s.before = s.ours.state.Clone()
	return slices.Concat(found, sticky, answers), errors.Join(err1, err2)
}
