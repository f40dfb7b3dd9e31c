package dns

import (
	"context"
	"time"
)

const (
	// healthInterval is how often an upstream that does not answer is asked again.
	healthInterval = 500 * time.Millisecond
	healthLimit    = time.Second
)

// health asks the upstreams that did not answer a client's question, until they
// do again: it is not a client that finds out that one is still away, and one
// that is back is used at once.
func (f *Forwarder) health(ctx context.Context) {
	tick := time.NewTicker(healthInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, u := range f.routes.Load().all() {
			if u.failed.Load() != 0 && u.checks.CompareAndSwap(false, true) {
				go f.check(ctx, u)
			}
		}
	}
}

// check asks one upstream for the name servers of the root. Any answer will do:
// that it knows these is not what it is asked for.
func (f *Forwarder) check(ctx context.Context, u *upstream) {
	defer u.checks.Store(false)
	ctx, cancel := context.WithTimeout(ctx, healthLimit)
	defer cancel()
	if _, err := u.exchange(ctx, cacheKey{name: Root, kind: TypeNS}); err != nil {
		u.counts.unhealthy.Add(1)
		u.fail()
		return
	}
	u.failed.Store(0)
	f.cfg.Log.Info("upstream answers again", "upstream", u.addr)
}
