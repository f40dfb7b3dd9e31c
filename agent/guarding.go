package agent

import (
	"errors"
	"fmt"

	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
)

// guarding keeps the tables that drop what pretends to be of a node or a pod.
type guarding struct {
	wanted  []guard.Rules // for which applied was made; nil after a doubt
	applied map[nft.Family]guard.Rules
}

// doubt says that the kernel may have other rules.
func (g *guarding) doubt() { g.wanted, g.applied = nil, nil }

// changed is told of changes of tables by somebody else.
func (g *guarding) changed(e nft.Event) {
	if e.Lost || e.Table.Name == guard.Name {
		g.doubt()
	}
}

// apply brings the Plan's rules to the kernel. While the own node's object is
// unusable all stays as it is, as the links do.
func (g *guarding) apply(conn *nft.Conn, p *plan.Plan) error {
	if len(g.wanted) > 0 && len(p.Guard) > 0 && &g.wanted[0] == &p.Guard[0] || p.OverlayInput().Check() != nil {
		return nil
	}
	if g.applied == nil {
		g.applied = map[nft.Family]guard.Rules{}
	}
	var errs []error
	for _, r := range p.Guard {
		if had, known := g.applied[r.Family]; known && had.Equal(r) {
			continue
		}
		delete(g.applied, r.Family)
		if err := conn.Commit(r.Tx()); err != nil {
			errs = append(errs, fmt.Errorf("guard, %s: %w", r.Family, err))
			continue
		}
		g.applied[r.Family] = r
	}
	if len(errs) == 0 {
		g.wanted = p.Guard
	}
	return errors.Join(errs...)
}

// droppedByGuard reads how many packets were dropped, by reason, from any goroutine.
func droppedByGuard() (map[string]uint64, error) {
	conn, err := nft.Dial(0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return guard.Counts(conn)
}
