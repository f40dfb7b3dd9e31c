// Package probe asks other nodes' agents whether packets arrive: one UDP echo, from
// and to addresses of nodes alone, never answered with more than it was sent, and
// not more often than a limit. It decides nothing about routes and changes nothing.
package probe

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Target is one way that is tried.
type Target struct {
	Name     string // of the target, for Results
	Node     string
	From, To netip.Addr
	// Size is the length of the whole IP packet; 0 is the shortest.
	Size int
	// Witness is the name of the target that says whether the node is there at all.
	// Of a node that is not, nothing is known of this way: it is Lost only when the
	// witness has answered since, or is Lost itself. "" is none.
	Witness string
}

// Result is what is known of a target.
type Result uint8

// The results.
const (
	Unknown Result = iota
	Arrives
	Lost // several in a row
)

// Results are by the targets' names. They are never changed once given away.
type Results map[string]Result

// How often is asked: a way that works now and then, one that does not soon, and
// then less and less often.
const (
	steady     = 10 * time.Second
	perTarget  = 40 * time.Millisecond // added to steady for each target, so that many nodes ask less often
	firstRetry = 100 * time.Millisecond
	lostAfter  = 3           // in a row
	soonest    = time.Second // between questions that others' questions bring about
	together   = 10 * time.Millisecond
	turns      = 100 * time.Millisecond // between looks for what is due
	atOnce     = 10                     // questions in one look, so that a cluster of which nobody answers costs little
)

// Prober asks and answers.
type Prober struct {
	port    uint16
	log     *slog.Logger
	limit   limiter
	sockets map[bool]*socket // by family; fewer where the kernel lacks one

	mu      sync.Mutex
	targets map[string]*state
	order   []*state              // the same; who was asked goes to the end
	peers   map[netip.Addr]string // addresses that are answered → their node
	asked   map[uint64]string     // number of a question under way → target
	next    uint64
	changed bool
	wake    chan struct{}
	out     chan Results
}

// state is a target with what is known of it.
type state struct {
	Target
	result Result
	misses int
	number uint64    // of the question under way; 0 is none
	last   time.Time // it was asked
	at     time.Time // it is asked next
	heard  time.Time // it has answered last
}

// New makes a Prober on a port.
func New(port uint16, log *slog.Logger) *Prober {
	return &Prober{port: port, log: log, limit: newLimiter(), sockets: map[bool]*socket{}, targets: map[string]*state{},
		asked: map[uint64]string{}, wake: make(chan struct{}, 1), out: make(chan Results, 1)}
}

// Results gives the newest results that were not taken yet.
func (p *Prober) Results() <-chan Results { return p.out }

// Peers says whose questions are answered: the addresses of other nodes.
func (p *Prober) Peers(addrs map[netip.Addr]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.peers = addrs
}

// Try says what is to be tried from now on. What is known of a target that stays the
// same is kept.
func (p *Prober) Try(targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fresh := make(map[string]*state, len(targets))
	for _, t := range targets {
		if had := p.targets[t.Name]; had != nil && had.Target == t {
			fresh[t.Name] = had
			continue
		}
		fresh[t.Name] = &state{Target: t}
		p.changed = true
	}
	p.changed = p.changed || len(fresh) != len(p.targets)
	p.targets, p.order = fresh, nil
	for _, t := range targets {
		p.order = append(p.order, fresh[t.Name])
	}
	p.wakeUp()
}

// Again has all that does not arrive tried at once: something has changed.
func (p *Prober) Again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.targets {
		if s.result != Arrives {
			s.misses, s.at = min(s.misses, lostAfter), time.Time{}
		}
	}
	p.wakeUp()
}

// Now has some targets tried at once, before all others. Answers to what was asked
// before no longer count.
func (p *Prober) Now(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var first, rest []*state
	for _, s := range p.order {
		if !slices.Contains(names, s.Name) {
			rest = append(rest, s)
			continue
		}
		delete(p.asked, s.number)
		s.number, s.misses, s.at = 0, 0, time.Time{}
		first = append(first, s)
	}
	p.order = append(first, rest...)
	p.wakeUp()
}

// Refresh has everything tried anew at once: somebody wants to know how it is now.
func (p *Prober) Refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.targets {
		s.at = time.Time{}
	}
	p.wakeUp()
}

func (p *Prober) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run asks and answers until ctx ends. A port that is in use is no reason to stop:
// nothing is known then.
func (p *Prober) Run(ctx context.Context) error {
	for _, v6 := range []bool{false, true} {
		s, err := listen(ctx, v6, p.port)
		if err != nil {
			p.log.Warn("probes of other nodes", "port", p.port, "ipv6", v6, "err", err)
			continue
		}
		defer s.Close()
		defer context.AfterFunc(ctx, func() { _ = s.Close() })()
		p.sockets[v6] = s
		go p.read(s)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.wake:
			// What comes together goes together.
			timer.Reset(together)
		case <-timer.C:
			timer.Reset(p.turn(time.Now()))
		}
	}
}

// turn sends of what is due as much as goes at once, and gives how long nothing is.
func (p *Prober) turn(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest, left := steady, atOnce
	var asked, others []*state
	for _, s := range p.order {
		if left > 0 && !s.at.After(now) {
			p.ask(s, now)
			left--
			asked = append(asked, s)
		} else {
			others = append(others, s)
		}
	}
	for _, s := range p.order {
		rest = min(rest, s.at.Sub(now))
	}
	if len(asked) > 0 {
		p.order = append(others, asked...)
	}
	if p.changed {
		p.changed = false
		p.publish()
	}
	return max(rest, turns)
}

// ask counts a question without an answer as a miss, and sends the next one.
func (p *Prober) ask(s *state, now time.Time) {
	if s.number != 0 {
		delete(p.asked, s.number)
		if s.misses++; p.witnessed(s) && s.misses >= lostAfter && s.result != Lost {
			s.result, p.changed = Lost, true
		}
	}
	p.next++
	s.number, s.last, p.asked[p.next] = p.next, now, s.Name
	usual := steady + time.Duration(len(p.targets))*perTarget
	s.at = now.Add(min(firstRetry<<min(s.misses, 16), usual))
	v6 := s.To.Is6()
	sock := p.sockets[v6]
	if sock == nil {
		return
	}
	// A packet that the kernel refuses to send is one that does not arrive; one for
	// which the socket has no room says nothing.
	err := sock.send(question(p.next, s.Size-headers(v6)), s.From, netip.AddrPortFrom(s.To, p.port))
	if errors.Is(err, syscall.EAGAIN) {
		delete(p.asked, s.number)
		s.number, s.at = 0, now.Add(firstRetry)
	}
}

// witnessed says that it is known whether the node was there when a target was asked
// in vain. Its witness is asked for the next time.
func (p *Prober) witnessed(s *state) bool {
	w := p.targets[s.Witness]
	if w == nil || w.result != Arrives {
		return true
	}
	if w.number == 0 {
		w.at = time.Time{}
	}
	return w.heard.After(s.last)
}

// headers are the bytes of IP and UDP.
func headers(v6 bool) int {
	if v6 {
		return 40 + 8
	}
	return 20 + 8
}

// arrived notes an answer.
func (p *Prober) arrived(number uint64, from netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.targets[p.asked[number]]
	delete(p.asked, number)
	if s == nil || s.number != number || s.To != from {
		return
	}
	usual := steady + time.Duration(len(p.targets))*perTarget
	s.number, s.misses, s.at, s.heard = 0, 0, now.Add(usual), now
	if s.result != Arrives {
		s.result, p.changed = Arrives, true
		p.back(s)
		p.wakeUp()
	}
}

// back forgets what was lost while the witness was, and has it tried anew.
func (p *Prober) back(witness *state) {
	for _, s := range p.targets {
		if s.Witness == witness.Name && s.result == Lost {
			s.result, s.misses, s.at = Unknown, 0, time.Time{}
		}
	}
}

func (p *Prober) publish() {
	out := make(Results, len(p.targets))
	for name, s := range p.targets {
		out[name] = s.result
	}
	select {
	case <-p.out: // one that nobody took is old now
	default:
	}
	p.out <- out
}

// read takes what comes until the socket is closed.
func (p *Prober) read(s *socket) {
	buf, oob := make([]byte, 64<<10), make([]byte, 256)
	for {
		n, from, to, err := s.receive(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of something that was sent
		}
		if number, is := answered(buf[:n]); is {
			p.arrived(number, from.Addr(), time.Now())
			continue
		}
		if isQuestion(buf[:n]) && p.may(from.Addr()) {
			_ = s.send(answer(buf[:n]), to, from)
		}
	}
}

// may says whether an address is answered: a node's, and not too often. A node that
// asks is there, so that what was lost on the way to it is tried again.
func (p *Prober) may(from netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	node, known := p.peers[from]
	if !known || !p.limit.allow(from, now) {
		return false
	}
	for _, s := range p.targets {
		if s.Node == node && s.result != Arrives && now.Sub(s.last) > soonest {
			s.misses, s.at = lostAfter, time.Time{}
			p.wakeUp()
		}
	}
	return true
}
