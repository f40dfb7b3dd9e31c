package agent

import (
	"errors"
	"fmt"
	"sync"

	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
)

// guarding keeps the tables that drop what pretends to be of a node or a pod.
type guarding struct {
	wanted  []guard.Rules // for which applied was made; nil after a doubt
	applied map[nft.Family]guard.Rules
	// past is what rules that were replaced have dropped, by reason: new ones count from
	// 0. The lock is held while they are replaced.
	mu   sync.Mutex
	past map[string]uint64
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
		had, known := g.applied[r.Family]
		if known && had.Equal(r) {
			continue
		}
		var before *nft.Tx
		if known {
			before = had.Tx()
		}
		delete(g.applied, r.Family)
		if err := g.replace(conn, r, before); err != nil {
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

// replace writes the rules of a family, and keeps what the ones before have counted. before wrote those; nil: not known.
func (g *guarding) replace(conn *nft.Conn, r guard.Rules, before *nft.Tx) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	counts, _ := guard.Counts(conn, r.Family) // where there is no table, nothing was counted
	if err := conn.CommitWhole(nft.Table{Family: r.Family, Name: guard.Name}, r.Tx(), before); err != nil {
		return err
	}
	if g.past == nil {
		g.past = map[string]uint64{}
	}
	for reason, n := range counts {
		g.past[reason] += n
	}
	return nil
}

// counts gives how many packets were dropped, by reason.
func (g *guarding) counts(conn *nft.Conn) (map[string]uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	counts, err := guard.Counts(conn, nft.IPv4, nft.IPv6)
	for reason, n := range g.past {
		if err == nil {
			counts[reason] += n
		}
	}
	return counts, err
}

// dropped is counts from any goroutine.
func (g *guarding) dropped() (map[string]uint64, error) {
	conn, err := nft.Dial(0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return g.counts(conn)
}
