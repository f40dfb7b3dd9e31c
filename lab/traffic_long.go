package lab

import (
	"bufio"
	"cmp"
	"context"
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

// run sends requests over one connection, and no other. An http.Transport would now
// and then close a connection of its own accord.
func (l *longs) run(ctx context.Context, u *url.URL, timeout time.Duration) error {
	d := net.Dialer{Timeout: timeout}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	began, answers, pod := time.Now(), bufio.NewReader(conn), "nobody"
	for n := 0; ; n++ {
		_ = conn.SetDeadline(time.Now().Add(timeout))
		by, err := ask(u, conn, answers)
		if err != nil {
			return fmt.Errorf("the one from %s, answered %d times by %s, ended at %s after %v: %w",
				conn.LocalAddr(), n, pod, time.Now().UTC().Format(time.TimeOnly), time.Since(began).Round(time.Millisecond), err)
		}
		pod = by
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

// ask sends one request and reads its answer whole; it gives the pod that answered.
func ask(u *url.URL, to io.Writer, answers *bufio.Reader) (pod string, err error) {
	req, err := http.NewRequest(http.MethodGet, u.String(), nil)
	if err != nil {
		return "", err
	}
	if err := req.Write(to); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(answers, req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get(PodHeader), err
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
