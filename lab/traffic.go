package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Traffic is a number of requests to stand-ins, each from a source port of its
// own: over HTTP a new TCP connection, over UDP one datagram and its answer.
type Traffic struct {
	URL      string // http://HOST:PORT/... or udp://HOST:PORT
	Requests int    // default 1
	Parallel int    // at the same time; default 1
	Rate     int    // a second at most; 0 is no limit
	// Long is how many connections more are open all the time, over each of which a
	// request goes every 100 ms. HTTP alone.
	Long    int
	Timeout time.Duration
}

// TrafficResult is what came of them.
type TrafficResult struct {
	URL      string         `json:"url"`
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	ServedBy map[string]int `json:"served_by"` // by the answering pod's name
	// Clients are the distinct client addresses, without ports, that the pods saw.
	Clients []string `json:"clients"`
	// SourcePorts is the number of distinct source ports used.
	SourcePorts int     `json:"source_ports"`
	Seconds     float64 `json:"seconds"`
	// LongRequests are those over the long connections; LongLost are such connections
	// that ended.
	LongRequests int `json:"long_requests,omitempty"`
	LongLost     int `json:"long_lost,omitempty"`
	// Errors has the first of each kind of error.
	Errors []string `json:"errors,omitempty"`
}

// portPool gives source ports, each once until all were given.
type portPool struct {
	mu   sync.Mutex
	next int
}

const firstSourcePort, lastSourcePort = 10000, 60999

func (p *portPool) take() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next++
	return firstSourcePort + p.next%(lastSourcePort-firstSourcePort+1)
}

// Run makes the requests. Its error says that they could not be made at all;
// requests that failed are counted.
func (t Traffic) Run(ctx context.Context) (*TrafficResult, error) {
	u, err := url.Parse(t.URL)
	if err != nil {
		return nil, err
	}
	request := map[string]func(context.Context, *url.URL, net.Dialer) (answer, error){"http": requestHTTP, "udp": requestUDP}[u.Scheme]
	if request == nil || u.Host == "" {
		return nil, fmt.Errorf("%q: want http://HOST:PORT or udp://HOST:PORT", t.URL)
	}
	t.Requests, t.Parallel = max(1, t.Requests), max(1, t.Parallel)
	if t.Timeout <= 0 {
		t.Timeout = 5 * time.Second
	}
	c := &tally{result: TrafficResult{URL: t.URL, Requests: t.Requests, ServedBy: map[string]int{}}, clients: map[string]bool{}, ports: map[int]bool{}}
	pool := &portPool{next: rand.IntN(lastSourcePort - firstSourcePort)}
	began := time.Now()
	todo := make(chan struct{})
	var workers sync.WaitGroup
	for range min(t.Parallel, t.Requests) {
		workers.Go(func() {
			for range todo {
				c.add(one(ctx, t.Timeout, u, pool, request))
			}
		})
	}
	long := t.startLong(ctx, u)
	for i := range t.Requests {
		if t.Rate > 0 {
			time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(t.Rate))))
		}
		todo <- struct{}{}
	}
	close(todo)
	workers.Wait()
	c.endLong(long)
	c.result.Seconds = time.Since(began).Seconds()
	return c.done(), nil
}

// answer is a stand-in's, and the source port that the request came from.
type answer struct {
	pod, client string
	port        int
}

// one makes one request from the next source port that is free.
func one(ctx context.Context, timeout time.Duration, u *url.URL, pool *portPool, request func(context.Context, *url.URL, net.Dialer) (answer, error)) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		port := pool.take()
		d := net.Dialer{FallbackDelay: -1, LocalAddr: &net.TCPAddr{Port: port}}
		if u.Scheme == "udp" {
			d.LocalAddr = &net.UDPAddr{Port: port}
		}
		a, err := request(ctx, u, d)
		a.port = port
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EADDRNOTAVAIL) || ctx.Err() != nil {
			return a, err
		}
	}
}

func requestHTTP(ctx context.Context, u *url.URL, d net.Dialer) (answer, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.DialContext}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return answer{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return answer{}, err
	}
	a := parseAnswer(string(body))
	if pod := resp.Header.Get(PodHeader); pod != "" {
		a.pod = pod
	}
	if resp.StatusCode != http.StatusOK {
		return a, errors.New(resp.Status)
	}
	return a, nil
}

func requestUDP(ctx context.Context, u *url.URL, d net.Dialer) (answer, error) {
	conn, err := d.DialContext(ctx, "udp", u.Host)
	if err != nil {
		return answer{}, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte("podlane lab\n")); err != nil {
		return answer{}, err
	}
	buf := make([]byte, 64<<10)
	n, err := conn.Read(buf)
	return parseAnswer(string(buf[:n])), err
}

// parseAnswer reads a stand-in's text. Of any other server the pod is unknown.
func parseAnswer(text string) answer {
	a := answer{pod: "unknown"}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		if pod, ok := strings.CutPrefix(lines.Text(), "pod: "); ok {
			a.pod = pod
		}
		if client, ok := strings.CutPrefix(lines.Text(), "client: "); ok {
			a.client = client
		}
	}
	return a
}

// tally adds up answers.
type tally struct {
	mu      sync.Mutex
	result  TrafficResult
	clients map[string]bool
	ports   map[int]bool
}

func (c *tally) add(a answer, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ports[a.port] = true
	if err != nil {
		c.result.Failed++
		if text := kindOf(err); len(c.result.Errors) < 5 && !slices.Contains(c.result.Errors, text) {
			c.result.Errors = append(c.result.Errors, text)
		}
		return
	}
	c.result.ServedBy[a.pod]++
	if host, _, err := net.SplitHostPort(a.client); err == nil {
		c.clients[host] = true
	}
}

// kindOf gives an error without the ports, which differ with every request.
func kindOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		return fmt.Sprintf("%s %s: %v", op.Op, op.Addr, op.Err)
	}
	return err.Error()
}

func (c *tally) done() *TrafficResult {
	c.result.Clients = slices.Sorted(maps.Keys(c.clients))
	if c.result.Clients == nil {
		c.result.Clients = []string{}
	}
	c.result.SourcePorts = len(c.ports)
	return &c.result
}
