package oracle

import (
	"fmt"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/packet"
	"github.com/podlane/podlane/test/oracle/world"
)

// flow is a TCP connection that was made in both nodes and goes on while Services
// change.
type flow struct {
	*group
	shot world.Shot
	ends [2]world.Outcome
}

const (
	flowsAtOnce = 16
	firstPort   = 61100 // above those that shots take
)

// open makes some connections: the first packet, and the answer to it, which has to
// arrive at the client with the address that the client asked.
func (s *sides) open(gs []*group) ([]mismatch, error) {
	s.flows = nil
	for _, i := range s.r.Perm(len(gs)) {
		g := gs[i]
		if g.protocol != cluster.TCP || len(g.backends) == 0 || g.client.from == world.Node || len(s.flows) == flowsAtOnce {
			continue
		}
		s.flows = append(s.flows, &flow{group: g, shot: world.Shot{From: g.client.from, Source: g.client.source(s.r, g),
			Protocol: g.protocol, To: g.to, Port: uint16(firstPort + len(s.flows))}})
	}
	var found []mismatch
	err := both(func(side int) error {
		var shots []world.Shot
		for _, f := range s.flows {
			shots = append(shots, f.shot)
		}
		out, err := s.shoot(side, shots)
		if err != nil {
			return err
		}
		for i, f := range s.flows {
			f.ends[side] = out[i]
		}
		wrong, err := s.answer(side)
		if side == 1 {
			found = wrong
		}
		return err
	})
	return found, err
}

// answer sends the answers of the ends that are behind a wire.
func (s *sides) answer(side int) ([]mismatch, error) {
	var shots []world.Shot
	var of []*flow
	for _, f := range s.flows {
		if end := f.ends[side]; !end.Refused && end.At < world.Node {
			of = append(of, f)
			shots = append(shots, world.Shot{From: end.At, Source: end.Dst.Addr(), Port: end.Dst.Port(), Protocol: cluster.TCP, To: end.Src, Flags: packet.SYN | packet.ACK})
		}
	}
	out, err := s.shoot(side, shots)
	if err != nil {
		return nil, err
	}
	var wrong []mismatch
	for i, f := range of {
		want := f.to
		if side == 1 {
			want = s.ours.sentTo(f.shot)
		}
		if out[i].Src != want || out[i].Dst.Addr() != f.shot.Source || out[i].At != f.shot.From {
			wrong = append(wrong, mismatch{Group: f.String(), Why: fmt.Sprintf("an answer from %s arrives as %+v", f.ends[side].Dst, out[i])})
		}
	}
	return wrong, nil
}

// follow sends one more packet of each connection: a change of Services does not
// reach it.
func (s *sides) follow(c *Coverage) ([]mismatch, error) {
	var found []mismatch
	var after [2][]world.Outcome
	err := both(func(side int) (err error) {
		var shots []world.Shot
		for _, f := range s.flows {
			shot := f.shot
			shot.Flags = packet.ACK
			shots = append(shots, shot)
		}
		after[side], err = s.shoot(side, shots)
		return err
	})
	for i, f := range s.flows {
		goes := [2]bool{}
		for side, end := range f.ends {
			o := after[side][i]
			goes[side] = end.At < world.Node && !end.Refused && o.At == end.At && o.Src == end.Src && o.Dst == end.Dst
		}
		if goes[0] {
			c.Sticky["1.4 a flow that was there goes on"]++
			if s.gone(f) {
				c.Sticky["1.4 a flow that was there goes on, its endpoint gone"]++
			}
		}
		if goes[0] != goes[1] && f.ends[0].At == f.ends[1].At {
			found = append(found, mismatch{Group: f.String(), Why: fmt.Sprintf("a connection that was there is now: kube-proxy %+v, then %+v; Podlane %+v, then %+v",
				f.ends[0], after[0][i], f.ends[1], after[1][i])})
		}
	}
	return found, err
}

// gone says that the flow's endpoint is none any more.
func (s *sides) gone(f *flow) bool {
	for _, b := range s.ours.table.Lookup(f.query(f.shot.Source)).Backends {
		if b == f.ends[1].Dst {
			return false
		}
	}
	return true
}
