package scenarios

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// late is when a probe counts as lost: before TCP sends its first packet again,
// which is after a second.
const late = 900 * time.Millisecond

// ways are the kinds of probes, and how often each is sent.
var ways = map[string]struct {
	every time.Duration
	send  func(p *probe)
}{
	"udp":    {10 * time.Millisecond, nil},                               // datagrams of one socket
	"tcp":    {10 * time.Millisecond, func(p *probe) { p.ask(late, 1) }}, // a connection each
	"load":   {4 * time.Millisecond, func(p *probe) { p.ask(3*time.Second, 1) }},
	"bulk":   {100 * time.Millisecond, func(p *probe) { p.ask(late, bulkSize) }},
	"stream": {10 * time.Millisecond, nil}, // a byte each on one connection
}

// report is what came of the probes of one target.
type report struct {
	Sent  int
	Lost  []time.Time    // when those were sent that nothing came back of in time
	By    map[string]int // who answered
	Error string         // the last one
	// Unknown is how many were not answered in time, but this program, or the
	// machine, stood still meanwhile.
	Unknown int
	Ended   string // why a stream broke
}

// probe sends to one target.
type probe struct {
	way, addr string

	mu      sync.Mutex
	report  report
	waiting map[int]time.Time // of udp and stream: sent and not answered
	running sync.WaitGroup
}

// pulse sends to targets, each WAY://ADDRESS:PORT, until its standard input ends,
// and prints the reports as JSON.
func pulse(ctx context.Context, args []string) error {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	var s stalls
	watching, unwatch := context.WithCancel(context.Background())
	defer unwatch()
	go s.watch(watching)
	probes := map[string]*probe{}
	var all sync.WaitGroup
	for _, target := range args {
		way, addr, _ := strings.Cut(target, "://")
		if _, ok := ways[way]; !ok {
			return fmt.Errorf("%q: unknown way", target)
		}
		p := &probe{way: way, addr: addr, report: report{By: map[string]int{}}, waiting: map[int]time.Time{}}
		probes[target] = p
		all.Go(func() { p.run(ctx) })
	}
	all.Wait()
	out := map[string]*report{}
	for target, p := range probes {
		s.excuse(&p.report)
		out[target] = &p.report
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func (p *probe) run(ctx context.Context) {
	switch p.way {
	case "udp":
		p.datagrams(ctx)
	case "stream":
		p.stream(ctx)
	default:
		p.each(ctx, func(int) { p.running.Go(func() { ways[p.way].send(p) }) })
		p.running.Wait()
	}
}

// each calls f at each of the way's ticks.
func (p *probe) each(ctx context.Context, f func(seq int)) {
	tick := time.NewTicker(ways[p.way].every)
	defer tick.Stop()
	for seq := 0; ; seq++ {
		f(seq)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// ask makes a connection and reads what the server sends until it closes.
func (p *probe) ask(timeout time.Duration, least int) {
	began := time.Now()
	text, err := readAll(p.addr, timeout)
	if err == nil && len(text) < least {
		err = fmt.Errorf("%d bytes came, want %d", len(text), least)
	}
	who := string(text)
	if len(text) > 100 {
		who = "bulk"
	}
	p.sent(began, who, err)
}

func readAll(addr string, timeout time.Duration) ([]byte, error) {
	d := net.Dialer{Deadline: time.Now().Add(timeout)}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(d.Deadline)
	return io.ReadAll(c)
}

// sent notes a probe that is over.
func (p *probe) sent(at time.Time, who string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Sent++
	if err != nil {
		p.report.Lost, p.report.Error = append(p.report.Lost, at), err.Error()
		return
	}
	p.report.By[who]++
}

// datagrams sends from one socket, so that all of it is one flow.
func (p *probe) datagrams(ctx context.Context) {
	c, err := net.ListenPacket("udp", ":0") // not connected: an ICMP error ends nothing
	if err != nil {
		p.report.Error = err.Error()
		return
	}
	defer c.Close()
	to, err := net.ResolveUDPAddr("udp", p.addr)
	if err != nil {
		p.report.Error = err.Error()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.answers(c)
	}()
	p.each(ctx, func(seq int) {
		p.wait(seq)
		if _, err := c.WriteTo([]byte(strconv.Itoa(seq)), to); err != nil {
			p.note(err) // no route is what is measured
		}
	})
	_ = c.SetReadDeadline(time.Now().Add(late))
	<-done
	p.giveUp()
}

func (p *probe) answers(c net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, _, err := c.ReadFrom(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if seq, who, ok := strings.Cut(string(b[:n]), " "); err == nil && ok {
			p.answered(seq, who)
		}
	}
}

func (p *probe) wait(seq int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Sent++
	p.waiting[seq] = time.Now()
}

func (p *probe) note(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.report.Error = err.Error()
}

// answered notes an answer, unless it is late.
func (p *probe) answered(text, who string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	seq, err := strconv.Atoi(text)
	at, ok := p.waiting[seq]
	if err != nil || !ok || time.Since(at) > late {
		return
	}
	delete(p.waiting, seq)
	p.report.By[who]++
}

// giveUp counts what was not answered as lost.
func (p *probe) giveUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, at := range p.waiting {
		p.report.Lost = append(p.report.Lost, at)
	}
}

// stream sends byte after byte on one connection, which must outlive everything.
// TCP sends again what is lost, so it is not asked when.
func (p *probe) stream(ctx context.Context) {
	c, err := net.DialTimeout("tcp", p.addr, late)
	if err != nil {
		p.report.Ended = err.Error()
		return
	}
	defer c.Close()
	broken := make(chan error, 1)
	got := 0
	go func() {
		b := make([]byte, 1500)
		for {
			n, err := c.Read(b)
			if got += n; err != nil {
				broken <- err
				return
			}
		}
	}()
	p.each(ctx, func(int) {
		if _, err := c.Write([]byte{'x'}); err == nil {
			p.report.Sent++
		}
	})
	// What is under way may wait for TCP's doubled pauses.
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if err := <-broken; !errors.Is(err, os.ErrDeadlineExceeded) {
		p.report.Ended = err.Error()
	}
	p.report.By["stream"] = got
}

// stalls are the times in which this program did not run although it wanted to: on
// a busy machine a packet that came in time is then seen too late.
type stalls struct {
	mu  sync.Mutex
	all [][2]time.Time
}

const stall = 250 * time.Millisecond

func (s *stalls) watch(ctx context.Context) {
	last := time.Now()
	for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
		now := time.Now()
		if now.Sub(last) > stall {
			s.mu.Lock()
			s.all = append(s.all, [2]time.Time{last, now})
			s.mu.Unlock()
		}
		last = now
	}
}

// excuse takes those for unknown that waited during a stall.
func (s *stalls) excuse(r *report) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Lost = slices.DeleteFunc(r.Lost, func(at time.Time) bool {
		for _, st := range s.all {
			if at.Before(st[1]) && at.Add(late).After(st[0]) {
				r.Unknown++
				return true
			}
		}
		return false
	})
}
