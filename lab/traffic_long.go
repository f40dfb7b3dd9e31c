package lab

import (
	"context"
	"errors"
	"fmt"
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

// watched remembers how its connection ended.
type watched struct {
	net.Conn
	end atomic.Pointer[error]
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil {
		w.end.CompareAndSwap(nil, &err)
	}
	return n, err
}

// ended tells it.
func (w *watched) ended(began time.Time) error {
	err := errors.New("its reader has not seen the end")
	if e := w.end.Load(); e != nil {
		err = *e
	}
	return fmt.Errorf("the long connection from %s ended after %v: %w", w.LocalAddr(), time.Since(began).Round(time.Millisecond), err)
}

// run sends requests over one connection, and no other.
func (l *longs) run(ctx context.Context, u *url.URL, timeout time.Duration) error {
	began := time.Now()
	var first *watched
	transport := &http.Transport{MaxConnsPerHost: 1, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if first != nil {
			return nil, first.ended(began)
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		first = &watched{Conn: conn}
		return first, nil
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
