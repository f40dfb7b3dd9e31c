package perf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/perf/qperf"
)

// ErrInvalid is an evaluation whose figures must not be used: they are not of what they are named after.
var ErrInvalid = errors.New("invalid run")

// What podlane's own data path counts, as `podlane perf witness` gives it.
const (
	Connections = "connections through the Service" // by the rules' own counters
	Tunnelled   = "packets in the overlay"          // by the device's, and the fast path's programs'
	Shortened   = "packets on the fast path"        // by its programs'
	AtSockets   = "connections translated at the socket"
)

// A Proof is what must be seen of every cell of a path. A Service that the client reaches by a
// short cut, or an overlay that is not in use, gives figures that look fine.
type Proof struct {
	// Servers are the server's own addresses; empty where they are not known.
	Servers []netip.Addr
	// Translated tells whether the server's own address is to differ from the one asked for.
	Translated bool
	// Witness reads counters of the data path; nil where there are none.
	Witness func(context.Context) (map[string]uint64, error)
	// Rounds are those in which the counters are read, from the first on, where reading them takes long; 0 means all.
	Rounds int
	// Moves are the counters that each cell must raise: one of packets by as many as it has carried, any other by one
	// at least.
	Moves []string
	// Still are those that it must not raise by more than so much.
	Still map[string]uint64
}

// prove measures a cell between two looks at the witnesses.
func (e *Evaluation) prove(ctx context.Context, cell *Cell, s step) error {
	p := s.path.Proof
	before, err := p.look(ctx, cell.Round)
	if err != nil {
		return fmt.Errorf("%s: counters: %w", s.path.Name, err)
	}
	if cell.Result, err = e.run(ctx, s); err != nil {
		return err
	}
	after, err := p.look(ctx, cell.Round)
	if err != nil {
		return fmt.Errorf("%s: counters: %w", s.path.Name, err)
	}
	for name, n := range after {
		if cell.Moved == nil {
			cell.Moved = map[string]uint64{}
		}
		cell.Moved[name] = n - min(before[name], n)
	}
	if err := p.check(cell); err != nil {
		return fmt.Errorf("%w: %s, %s in round %d: %w", ErrInvalid, s.path.Name, s.test, cell.Round, err)
	}
	return nil
}

func (p *Proof) look(ctx context.Context, round int) (map[string]uint64, error) {
	if p == nil || !p.counted(round) {
		return nil, nil
	}
	return p.Witness(ctx)
}

func (p *Proof) counted(round int) bool {
	return p.Witness != nil && (p.Rounds == 0 || round <= p.Rounds)
}

func (p *Proof) check(c *Cell) error {
	if p == nil {
		return nil
	}
	if err := p.addresses(c.Result.Path); err != nil || c.Result.Test == qperf.Rest || !p.counted(c.Round) {
		return err
	}
	for _, name := range p.Moves {
		switch n, want := c.Moved[name], least(name, c.Result); {
		case n == 0:
			return fmt.Errorf("the counter of %s did not move: the packets went another way", name)
		case n < want:
			return fmt.Errorf("the counter of %s moved by %d, and at least %d went to the server: the packets went another way", name, n, want)
		}
	}
	for name, limit := range p.Still {
		if n := c.Moved[name]; n > limit {
			return fmt.Errorf("the counter of %s moved by %d: the packets went another way", name, n)
		}
	}
	return nil
}

// least is by how much a counter must have risen. What passes the overlay beside the cell, such as the agents'
// probes, is little.
func least(name string, r *qperf.Result) uint64 {
	if name != Tunnelled {
		return 1
	}
	return r.Packets()
}

// Encapsulated tells whether a cell's packets went through the overlay's device.
func (c *Cell) Encapsulated() bool {
	return c.Moved[Tunnelled] > 0 && c.Moved[Tunnelled] >= c.Result.Packets()
}

func (p *Proof) addresses(f qperf.PathFacts) error {
	own := f.PeerLocal.Addr()
	switch {
	case !own.IsValid():
		return errors.New("the server does not say by which address it was reached")
	case p.Translated && own == f.Data.Addr():
		return fmt.Errorf("the server was reached at %s itself, not through a Service", own)
	case !p.Translated && own != f.Data.Addr():
		return fmt.Errorf("asked for %s, and the server was reached as %s: translated on the way", f.Data.Addr(), own)
	case len(p.Servers) > 0 && !slices.Contains(p.Servers, own):
		return fmt.Errorf("a server at %s answered, want one of %v", own, p.Servers)
	}
	return nil
}
