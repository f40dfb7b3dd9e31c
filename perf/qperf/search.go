package qperf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

// Search is what udp_max found: the highest rates in payload bytes/s that arrived without loss,
// and with 0.5 % at most (the non-drop and partial drop rates of RFC 9411's and MLRsearch's
// tradition). A blast tells how the receiver behaves when it is overrun, not what the path carries.
type Search struct {
	NoLoss      float64 `json:"no_loss"`
	HalfPercent float64 `json:"half_percent"`
	// SenderLimited: at its full speed the sender lost nothing, so the path may carry more.
	SenderLimited bool    `json:"sender_limited"`
	Trials        []Trial `json:"trials"`
}

// A Trial is one rate of the search. A rate that arrives slower than it was sent fills a queue: it would lose in a longer trial.
type Trial struct {
	Rate float64 `json:"rate"` // payload bytes/s as sent
	Got  float64 `json:"got"`  // and as received
	Loss float64 `json:"loss"` // part of the datagrams
}

const (
	halfPercent = 0.005
	precision   = 0.01 // where the search ends
)

// searcher runs the trials, each a paced udp_bw of its own.
type searcher struct {
	client  *client
	options Options
	last    *Result
	trials  []Trial
}

// search runs udp_max. The first trial goes as fast as it can; then halves of the interval.
// It uses the connection that the caller has made for the first trial.
func search(ctx context.Context, c *client) (*Result, error) {
	s := &searcher{client: c, options: c.options}
	first, err := s.try(ctx, c.options.Rate)
	if err != nil {
		return nil, err
	}
	found := &Search{}
	if s.passes(first, 0) {
		found.NoLoss, found.HalfPercent, found.SenderLimited = first.carried(), first.carried(), true
	} else {
		if found.HalfPercent, err = s.highest(ctx, first, first, halfPercent); err == nil {
			found.NoLoss, err = s.highest(ctx, s.nearest(found.HalfPercent, first), first, 0)
		}
		if err != nil {
			return nil, err
		}
		found.HalfPercent = max(found.HalfPercent, found.NoLoss)
	}
	found.Trials = s.trials
	r := s.last
	r.Test, r.Search, r.Series = UDPSearch, found, nil
	return r, nil
}

// passes allows a rate to arrive a little slower than sent: the two ends' clocks start apart by up to a millisecond.
func (s *searcher) passes(t Trial, limit float64) bool {
	slack := 0.002 + float64(time.Millisecond)/float64(s.options.Time)
	return t.Loss <= limit && t.Got >= (1-limit-slack)*t.Rate
}

// carried is what a trial shows that the path carries.
func (t Trial) carried() float64 { return min(t.Rate, t.Got) }

// nearest is the trial whose rate is the one given.
func (s *searcher) nearest(rate float64, otherwise Trial) Trial {
	for _, t := range s.trials {
		if t.carried() == rate {
			return t
		}
	}
	return otherwise
}

// highest finds the highest rate whose loss is within the limit. What came through of the
// guess is tried first, since it is near.
func (s *searcher) highest(ctx context.Context, guess, first Trial, limit float64) (float64, error) {
	best, low, high := 0.0, 0.0, first.Rate
	for _, t := range s.trials { // those of the other limit tell too
		if s.passes(t, limit) && t.Rate > low {
			best, low = t.carried(), t.Rate
		}
	}
	for _, t := range s.trials {
		if !s.passes(t, limit) && t.Rate > low {
			high = min(high, t.Rate)
		}
	}
	step := precision
	for next := guess.Got * (1 - precision); high-low > precision*high && len(s.trials) < 40; next = min(low*(1+step), (low+high)/2) {
		if next <= low || next >= high {
			next = (low + high) / 2
		}
		t, err := s.try(ctx, next/float64(s.options.MsgSize))
		if err == nil && !s.passes(t, limit) { // once more: a moment's stall of either end is not the path's limit
			t, err = s.try(ctx, next/float64(s.options.MsgSize))
		}
		if err != nil {
			return 0, err
		}
		if !s.passes(t, limit) {
			high = next
			continue
		}
		low, best, step = next, t.carried(), 2*step
	}
	return best, nil
}

// try measures at a rate in messages/s, 0 being as fast as it goes.
func (s *searcher) try(ctx context.Context, rate float64) (Trial, error) {
	o := s.options
	o.Rate, o.Warmup = rate, max(o.Warmup, 50*time.Millisecond)
	var r *Result
	var err error
	if s.trials == nil {
		s.client.test, s.client.options = UDPBandwidth, o
		if r, err = s.client.run(ctx); errors.Is(err, ErrPlainServer) {
			err = errNeedsOwn
		}
	} else {
		o.Server = s.client.path.Control.Addr().String() // a name might lead elsewhere now
		r, err = Run(ctx, UDPBandwidth, o)
	}
	if ctx.Err() != nil {
		return Trial{}, ctx.Err()
	}
	if err != nil {
		return Trial{}, fmt.Errorf("udp_max to %s: %w", net.JoinHostPort(s.options.Server, fmt.Sprint(s.options.Port)), err)
	}
	s.last = r
	t := Trial{Rate: float64(r.Loss.Sent) * float64(r.MsgSize) / r.Time, Got: r.Figures.RecvBandwidth, Loss: r.Loss.Fraction}
	s.trials = append(s.trials, t)
	return t, nil
}
