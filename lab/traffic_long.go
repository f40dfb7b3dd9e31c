package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const longEvery = 100 * time.Millisecond

// longs are connections that stay.
type longs struct {
	stop     chan struct{}
	wait     sync.WaitGroup
	requests atomic.Int64
	mu       sync.Mutex
	errs     []error
}

func (t Traffic) startLong(ctx context.Context, u *url.URL) *longs {
	l := &longs{stop: make(chan struct{})}
	for range t.Long {
		l.wait.Go(func() {
			if err := l.run(ctx, u, t.Timeout); err != nil {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
	return l
}

var errSecondConnection = errors.New("the long connection ended")

// run sends requests over one connection, and no other.
func (l *longs) run(ctx context.Context, u *url.URL, timeout time.Duration) error {
	dialed := false
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if dialed {
			return nil, errSecondConnection
		}
		dialed = true
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: timeout}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		l.requests.Add(1)
		select {
		case <-l.stop:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(longEvery):
		}
	}
}

// endLong ends them and takes down what became of them.
func (c *tally) endLong(l *longs) {
	close(l.stop)
	l.wait.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.result.LongRequests, c.result.LongLost = int(l.requests.Load()), len(l.errs)
	for _, err := range l.errs {
		c.result.Errors = append(c.result.Errors, "long connection: "+err.Error())
	}
}
