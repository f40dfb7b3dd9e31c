// Package probe asks other nodes' agents whether packets arrive: one UDP echo, from
// and to addresses of nodes alone, never answered with more than it was sent, and
// not more often than a limit. It decides nothing about routes and changes nothing.
package probe

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
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
	newsAfter  = time.Second            // so long may it wait to be told that a node is not there that never was
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
	queue   queue                 // the same
	nodes   map[string][]*state   // the same, by node
	peers   map[netip.Addr]string // addresses that are answered → their node
	asked   map[uint64]string     // number of a question under way → target
	next    uint64
	changed bool      // a result
	news    bool      // likewise, or of nodes that were never there: that can wait
	told    time.Time // the results
	epoch   time.Time // the Prober was made
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
	place  int       // among those that are asked next at the same time
	index  int       // in the queue
}

// New makes a Prober on a port.
func New(port uint16, log *slog.Logger) *Prober {
	return &Prober{port: port, log: log, limit: newLimiter(), sockets: map[bool]*socket{}, targets: map[string]*state{},
		asked: map[uint64]string{}, epoch: time.Now(), wake: make(chan struct{}, 1), out: make(chan Results, 1)}
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
	nodes := map[string][]*state{}
	all := make(queue, 0, len(targets))
	for _, t := range targets {
		if fresh[t.Name] != nil {
			continue // another pod CIDR of the same node
		}
		s := p.targets[t.Name]
		if s == nil || s.Target != t {
			s = &state{Target: t}
			p.changed = true
		}
		s.place, s.index = len(all), len(all)
		fresh[t.Name], all = s, append(all, s)
		nodes[t.Node] = append(nodes[t.Node], s)
	}
	for name, s := range p.targets {
		if fresh[name] != s {
			delete(p.asked, s.number)
		}
	}
	p.changed = p.changed || len(fresh) != len(p.targets)
	p.targets, p.nodes, p.queue = fresh, nodes, all
	p.hold(time.Now())
	heap.Init(&p.queue)
	p.wakeUp()
}

// hold has ways that are new wait for their nodes' answers. Those of nodes that are
// gone come one after the other then, so that nobody has to wait behind all of them.
func (p *Prober) hold(now time.Time) {
	for i, s := range p.queue {
		if s.at.IsZero() && p.waits(s) {
			s.at = now.Add(p.seldom() * time.Duration(i) / time.Duration(len(p.queue)))
		}
	}
}

// Again has all that does not arrive tried at once: something has changed.
func (p *Prober) Again() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, s := range p.targets {
		if s.result != Arrives && !p.waits(s) {
			s.misses = min(s.misses, lostAfter)
			p.due(s, now)
		}
	}
	p.wakeUp()
}

// Now has some targets tried at once, before all others. Answers to what was asked
// before no longer count.
func (p *Prober) Now(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range names {
		s := p.targets[name]
		if s == nil {
			continue
		}
		delete(p.asked, s.number)
		s.number, s.misses, s.place = 0, 0, -1
		p.later(s, time.Time{})
	}
	p.wakeUp()
}

// Refresh has everything tried anew at once: somebody wants to know how it is now.
func (p *Prober) Refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, s := range p.targets {
		p.due(s, now)
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
		s, err := listen(v6, p.port)
		if err != nil {
			p.log.Warn("probes of other nodes", "port", p.port, "ipv6", v6, "err", err)
			continue
		}
		p.sockets[v6] = s
		var reader sync.WaitGroup
		reader.Go(func() { p.read(s) })
		defer func() {
			s.end()
			reader.Wait()
			_ = s.Close()
		}()
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
	for left := atOnce; left > 0 && len(p.queue) > 0 && !p.queue[0].at.After(now); left-- {
		p.ask(p.queue[0], now)
	}
	rest := steady
	if len(p.queue) > 0 {
		rest = min(rest, p.queue[0].at.Sub(now))
	}
	if p.news {
		rest = min(rest, newsAfter)
	}
	if p.changed || p.news && now.Sub(p.told) >= newsAfter {
		p.changed, p.news, p.told = false, false, now
		p.publish()
	}
	return max(rest, turns)
}

// ask counts a question without an answer as a miss, and sends the next one.
func (p *Prober) ask(s *state, now time.Time) {
	if s.number != 0 {
		delete(p.asked, s.number)
		if s.misses++; p.witnessed(s, now) && s.misses >= lostAfter && s.result != Lost {
			if s.result == Arrives || s.Witness != "" {
				p.changed = true
			}
			s.result, p.news = Lost, true
			p.gone(s, now)
		}
	}
	p.next++
	s.number, s.last, p.asked[p.next] = p.next, now, s.Name
	p.later(s, p.after(now, p.pause(s)))
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
		s.number = 0
		p.later(s, now.Add(firstRetry))
	}
}

// usual is how long it is between the questions to a target that answers.
func (p *Prober) usual() time.Duration {
	return steady + time.Duration(len(p.targets))*perTarget
}

// seldom is how long it is between the questions on a way of which nothing is to be
// learned.
func (p *Prober) seldom() time.Duration { return 4 * p.usual() }

// pause is how long it is to the next question. Who has never answered is asked as seldom
// as who does: when it comes, it asks itself (may).
func (p *Prober) pause(s *state) time.Duration {
	switch {
	case p.waits(s):
		return p.seldom()
	case s.misses >= lostAfter && s.heard.IsZero():
		return p.usual()
	}
	return min(firstRetry<<min(s.misses, 16), p.usual())
}

// after gives when a pause is over. What is asked now and then is asked at a full second,
// so that many questions are one turn.
func (p *Prober) after(now time.Time, pause time.Duration) time.Time {
	if pause < p.usual() {
		return now.Add(pause)
	}
	return p.epoch.Add((now.Sub(p.epoch) + pause).Truncate(time.Second))
}

// waits says that nothing is to be learned of a way soon: its node has not answered,
// and is asked itself. When it does, the way is tried at once (back).
func (p *Prober) waits(s *state) bool {
	w := p.targets[s.Witness]
	return w != nil && w.result != Arrives && s.result != Arrives
}

// witnessed says that it is known whether the node was there when a target was asked
// in vain. Its witness is asked for the next time.
func (p *Prober) witnessed(s *state, now time.Time) bool {
	w := p.targets[s.Witness]
	if w == nil || w.result != Arrives {
		return true
	}
	if w.number == 0 {
		p.due(w, now)
	}
	return w.heard.After(s.last)
}

// gone says of the ways to a node that is lost what is known of them: one that has
// never arrived does not, and one that did is asked.
func (p *Prober) gone(witness *state, now time.Time) {
	for _, s := range p.nodes[witness.Node] {
		switch {
		case s.Witness != witness.Name:
		case s.result == Arrives:
			p.due(s, now)
		default:
			s.result = Lost
		}
	}
}

// back forgets what was lost while the witness was, and has it tried anew.
func (p *Prober) back(witness *state) {
	for _, s := range p.nodes[witness.Node] {
		if s.Witness == witness.Name && s.result != Arrives {
			s.result, s.misses = Unknown, 0
			p.due(s, s.last.Add(firstRetry)) // who was asked just now may answer yet
		}
	}
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
	s.number, s.misses, s.heard = 0, 0, now
	p.later(s, p.after(now, p.usual()))
	if s.result != Arrives {
		s.result, p.changed = Arrives, true
		p.back(s)
		p.wakeUp()
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

// read takes what comes until the socket is ended.
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
	for _, s := range p.nodes[node] {
		if s.result != Arrives && now.Sub(s.last) > soonest {
			s.misses = lostAfter
			p.due(s, now)
			p.wakeUp()
		}
	}
	return true
}
