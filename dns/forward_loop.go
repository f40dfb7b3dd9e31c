package dns

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"
)

const (
	loopInterval   = 10 * time.Minute // between looks for loops
	loopRetry      = 30 * time.Second // while there is one
	loopProbeLimit = 2 * time.Second
)

// probe is a name that nobody else asks for. If it comes in while an upstream is
// asked for it, the upstream asks us.
type probe struct {
	name Name
	seen atomic.Bool
}

// Run looks for upstreams that lead back to this server, at once and every now
// and then, and keeps them out until they do so no more; and it asks those that
// did not answer until they do. It ends with ctx.
func (f *Forwarder) Run(ctx context.Context) error {
	var health sync.WaitGroup
	health.Go(func() { f.health(ctx) })
	defer health.Wait()
	for {
		wait := loopInterval
		for _, u := range f.routes.Load().all() {
			if f.look(ctx, u) {
				wait = loopRetry
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		case <-f.changed:
		}
	}
}

// look probes one upstream and notes the outcome.
func (f *Forwarder) look(ctx context.Context, u *upstream) (loops bool) {
	p := &probe{name: Root.child(rand.Text(), rand.Text())}
	f.probe.Store(p)
	defer f.probe.Store(nil)
	ctx, cancel := context.WithTimeout(ctx, loopProbeLimit)
	defer cancel()
	_, _ = u.exchange(ctx, cacheKey{name: p.name, kind: TypeHINFO})
	loops = p.seen.Load()
	if was := u.loops.Swap(loops); was != loops {
		if loops {
			f.cfg.Log.Error("upstream asks this server: not used until it does so no more", "upstream", u.addr)
		} else {
			f.cfg.Log.Info("upstream no longer asks this server", "upstream", u.addr)
		}
	}
	return loops
}

// isProbe says whether a question is our own, come back.
func (f *Forwarder) isProbe(n Name) bool {
	p := f.probe.Load()
	if p == nil || p.name != n {
		return false
	}
	p.seen.Store(true)
	return true
}
