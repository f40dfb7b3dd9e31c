package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

var (
	errBroken     = errors.New("broken answer")
	errNoUpstream = errors.New("no upstream resolver")
)

// ForwardConfig is the settings of a Forwarder. The zero value of a field is
// its default.
type ForwardConfig struct {
	// Upstreams are asked in this order, those that did not answer lately last.
	Upstreams []netip.AddrPort
	// Stubs are the zones whose names others are asked for; the longest zone counts.
	Stubs []Stub
	// Hosts are answered before all; nil: none.
	Hosts *Hosts
	// Patience is how long one is waited for before the next is asked as well. 1 s.
	Patience time.Duration
	// Timeout is how long a question may take at all. 4.5 s: below the 5 s that
	// resolvers of C libraries wait.
	Timeout time.Duration
	// CacheBytes bounds the memory of the cache. 16 MiB.
	CacheBytes int
	// MaxTTL and MaxNegativeTTL bound how long answers are kept. 1 h and 5 min.
	MaxTTL, MaxNegativeTTL time.Duration
	// MaxStale is how long after its end an answer may still be given when no
	// upstream has a better one (RFC 8767). 1 h; below 0: not at all.
	MaxStale time.Duration
	Log      *slog.Logger
}

func (c ForwardConfig) withDefaults() ForwardConfig {
	set(&c.Patience, time.Second)
	set(&c.Timeout, 4500*time.Millisecond)
	set(&c.CacheBytes, 16<<20)
	set(&c.MaxTTL, time.Hour)
	set(&c.MaxNegativeTTL, 5*time.Minute)
	set(&c.MaxStale, time.Hour)
	set(&c.Log, slog.New(slog.DiscardHandler))
	return c
}

func set[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Forwarder asks other resolvers and keeps their answers. Equal questions at one
// time are one question to them, so a loop back to this server waits for itself
// and ends with the timeout, instead of growing.
type Forwarder struct {
	cfg     ForwardConfig
	routes  atomic.Pointer[routes]
	changed chan struct{} // there are new upstreams
	cache   *cache
	flights singleflight.Group
	probe   atomic.Pointer[probe]
	counts  forwardCounts
}

// NewForwarder makes a Forwarder. Without upstreams it answers nothing.
func NewForwarder(cfg ForwardConfig) *Forwarder {
	cfg = cfg.withDefaults()
	f := &Forwarder{cfg: cfg, cache: newCache(cfg.CacheBytes, cfg.MaxStale), changed: make(chan struct{}, 1)}
	f.routes.Store(newRoutes(nil, cfg.Upstreams, cfg.Stubs))
	return f
}

// patience is how long a client waits for a better answer than a stale one (RFC
// 8767, section 5).
const patience = 1800 * time.Millisecond

// resolve gives the answer to q from the cache or from an upstream, or where
// none has one in time, a stale one.
func (f *Forwarder) resolve(ctx context.Context, q *query) (*stored, error) {
	k := q.key()
	if s, _ := f.cache.get(k, time.Now()); s != nil {
		return s, nil
	}
	ch := f.flights.DoChan(k.flight(), func() (any, error) { return f.ask(k) })
	stale := f.cache.stale(k, time.Now())
	var late <-chan time.Time
	if stale != nil {
		late = time.After(patience)
	}
	select {
	case r := <-ch:
		s, _ := r.Val.(*stored)
		if stale != nil && (r.Err != nil || s.code != NoError && s.code != NXDomain) {
			return f.giveStale(k, stale), nil
		}
		return s, r.Err
	case <-late:
		return f.giveStale(k, stale), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// giveStale notes that upstreams did not help, so that the next client does not
// have to find out again.
func (f *Forwarder) giveStale(k cacheKey, s *stored) *stored {
	f.cache.postpone(k, time.Now())
	f.counts.stale.Add(1)
	return s
}

// refresh asks anew for an answer that is in the cache.
func (f *Forwarder) refresh(k cacheKey) {
	f.counts.prefetch.Add(1)
	<-f.flights.DoChan(k.flight(), func() (any, error) { return f.ask(k) })
}

// flight is the key as a string.
func (k cacheKey) flight() string {
	return string(append([]byte(k.name), byte(k.kind>>8), byte(k.kind), flagByte(k.do), flagByte(k.cd)))
}

func flagByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// ask asks the upstreams, each some patience after the one before, until one has
// an answer that is better than none of them having one.
func (f *Forwarder) ask(k cacheKey) (*stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), f.cfg.Timeout)
	defer cancel()
	order := order(f.routes.Load().of(k.name), time.Now())
	if len(order) == 0 {
		f.counts.none.Add(1)
		return nil, errNoUpstream
	}
	if len(order) == 1 {
		order = append(order, order[0], order[0]) // a datagram can be lost
	}
	m, err := f.race(ctx, k, order)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.name, k.kind, err)
	}
	s, err := store(m, time.Now(), f.cfg.MaxTTL, f.cfg.MaxNegativeTTL)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.name, k.kind, err)
	}
	f.cache.put(k, s)
	return s, nil
}

// result is what one upstream gave.
type result struct {
	m   *dns.Msg
	err error
}

// race starts one attempt after the other and gives the first good answer. An
// answer that another may better (SERVFAIL, REFUSED) is given when all are done.
func (f *Forwarder) race(ctx context.Context, k cacheKey, order []*upstream) (*dns.Msg, error) {
	results := make(chan result, len(order))
	patience := time.NewTimer(0)
	defer patience.Stop()
	var poor *dns.Msg
	err := errNoUpstream
	for started, done := 0, 0; done < len(order); {
		select {
		case <-patience.C:
			if started > 0 {
				order[started-1].fail() // slow, or its answer is no good
			}
			if started < len(order) {
				go f.attempt(ctx, order[started], k, results)
				started++
				patience.Reset(f.cfg.Patience)
			}
		case r := <-results:
			done++
			switch {
			case r.err != nil:
				err = r.err
			case good(r.m):
				return r.m, nil
			default:
				poor = r.m
			}
			patience.Reset(0) // do not wait for who has spoken
		case <-ctx.Done():
			if poor == nil {
				return nil, ctx.Err()
			}
			return poor, nil
		}
	}
	if poor != nil {
		return poor, nil
	}
	return nil, err
}

func good(m *dns.Msg) bool {
	return m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError
}

// attempt asks one upstream. It ends at the latest with ctx.
func (f *Forwarder) attempt(ctx context.Context, u *upstream, k cacheKey, results chan<- result) {
	start := time.Now()
	m, err := u.exchange(ctx, k)
	u.observe(m, time.Since(start))
	switch {
	case err == nil && good(m):
		u.failed.Store(0)
	case ctx.Err() == nil:
		u.fail()
	}
	results <- result{m, err}
}

// shunned is how long an upstream that did not answer is asked last.
const shunned = 5 * time.Second

// order gives the upstreams in the order to ask them; one that leads back to
// this server is left out.
func order(upstreams []*upstream, now time.Time) []*upstream {
	var fine, bad []*upstream
	for _, u := range upstreams {
		switch {
		case u.loops.Load():
		case now.UnixNano()-u.failed.Load() < int64(shunned):
			bad = append(bad, u)
		default:
			fine = append(fine, u)
		}
	}
	if len(fine) == 0 {
		return bad
	}
	return slices.Concat(fine, bad)
}
