package agent

import (
	"context"
	"log/slog"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/nftables/apply"
)

// services keeps the node's service tables as a Plan wants them.
type services struct {
	log     *slog.Logger
	conn    *nft.Conn
	monitor *nft.Monitor
	applier *apply.Applier
	backend backend
	notices chan nft.Event
}

func (s *services) open(log *slog.Logger) (err error) {
	s.log, s.notices = log, make(chan nft.Event)
	if s.conn, err = nft.Dial(0); err != nil {
		return err
	}
	if s.monitor, err = nft.NewMonitor(0, s.conn.PortID()); err != nil {
		_ = s.conn.Close()
		return err
	}
	s.applier = apply.New(s.conn, nft.IPv4, nft.IPv6)
	s.applier.Listens(s.monitor)
	return nil
}

func (s *services) close() {
	_ = s.monitor.Close()
	_ = s.conn.Close()
}

// watch hands the monitor's events to the loop. Where the loop is behind, events
// wait in the socket, and the monitor tells when that was too small.
func (s *services) watch(ctx context.Context) error {
	return s.monitor.Run(ctx, func(e nft.Event) {
		select {
		case s.notices <- e:
		case <-ctx.Done():
		}
	})
}

func (s *services) changed(e nft.Event) {
	switch {
	case !s.applier.Changed(e):
	case e.Lost:
		s.log.Info("others may have changed our tables unseen; they are read again")
	default:
		s.log.Warn("someone else changed our table; it is built anew", "table", e.Table.String(), "gone", e.Gone)
	}
}

// audit compares the tables with what they are believed to have.
func (s *services) audit(p *plan.Plan) {
	if p == nil {
		return
	}
	err := s.applier.Audit(p.Table, p.PodAddrs)
	if s.backend.chains != nil {
		err = s.backend.chains.Audit()
	}
	if err != nil {
		s.log.Warn("audit", "err", err)
	}
}

// tidy removes what no Service uses any more.
func (s *services) tidy() {
	if err := s.applier.Tidy(); err != nil {
		s.log.Warn("tidy", "err", err)
	}
}

func (s *services) problems() []cluster.Problem {
	if s.backend.chains != nil {
		return s.backend.chains.Problems()
	}
	return s.applier.Problems()
}
