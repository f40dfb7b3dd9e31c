package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// ServerConfig is the settings of a Server. The zero value of a field with a
// default is that default.
type ServerConfig struct {
	// Listen are the addresses to answer at, UDP and TCP. With port 0 the kernel
	// chooses one. An unspecified address is all addresses of that family.
	Listen []netip.AddrPort
	// Domain is the zone's name, known before the first Zone is.
	Domain Name
	// Forwarder answers for all other names; nil: they are refused.
	Forwarder *Forwarder
	// UDPSize is the longest answer over UDP, whatever clients say they take. 1232.
	UDPSize int
	// Sockets is the number of UDP sockets of each address. One a core.
	Sockets int
	// MaxPending bounds the questions that wait for upstreams. 1000.
	MaxPending int
	// MaxConns bounds the TCP connections. 1000.
	MaxConns int
	// LameDuck is how long a server that was told to end goes on answering, so that
	// clients find another; Drain is how long it then waits for questions at
	// upstreams. 1 s and 700 ms.
	LameDuck, Drain time.Duration
	LogQueries      bool
	Log             *slog.Logger
}

func (c ServerConfig) withDefaults() ServerConfig {
	set(&c.UDPSize, upstreamUDP)
	set(&c.Sockets, runtime.GOMAXPROCS(0))
	set(&c.MaxPending, 1000)
	set(&c.MaxConns, 1000)
	set(&c.LameDuck, time.Second)
	set(&c.Drain, 700*time.Millisecond)
	set(&c.Log, slog.New(slog.DiscardHandler))
	return c
}

// Server answers questions over UDP and TCP from the newest Zone, and from a
// Forwarder what the zone does not have. Until there is a Zone it answers
// SERVFAIL for the names of the zone. All methods are safe for use by several
// goroutines.
//
// A question of the zone, and one that the cache knows, is answered by the
// goroutine that read it; only one that has to wait gets a goroutine of its own.
type Server struct {
	cfg       ServerConfig
	zone      atomic.Pointer[Zone]
	listeners []*listener
	pending   chan struct{} // a token for each question at upstreams
	conns     chan struct{} // a token for each TCP connection
	waiting   sync.WaitGroup
	draining  atomic.Bool
	stats     statsList
	clients   atomic.Pointer[clients]
	watchers  watchers
}

// listener is the sockets of one address.
type listener struct {
	tcp *net.TCPListener
	udp []*net.UDPConn
	any bool // bound to the unspecified address
}

// NewServer makes a Server that does not listen yet.
func NewServer(cfg ServerConfig) *Server {
	cfg = cfg.withDefaults()
	return &Server{
		cfg:     cfg,
		pending: make(chan struct{}, cfg.MaxPending),
		conns:   make(chan struct{}, cfg.MaxConns),
	}
}

// SetZone makes z the zone that questions are answered from.
func (s *Server) SetZone(z *Zone) { s.zone.Store(z) }

// Ready says whether the server listens, has a zone and is not about to end.
func (s *Server) Ready() bool {
	return len(s.listeners) > 0 && s.zone.Load() != nil && !s.draining.Load()
}

// Listen opens the sockets of all addresses, or none of them.
func (s *Server) Listen() error {
	for _, a := range s.cfg.Listen {
		l, err := listen(a, s.cfg.Sockets)
		if err != nil {
			s.close()
			return fmt.Errorf("listen %s: %w", a, err)
		}
		s.listeners = append(s.listeners, l)
	}
	if len(s.listeners) == 0 {
		return errors.New("listen: no address given")
	}
	return nil
}

// Addrs gives the addresses that the server listens on.
func (s *Server) Addrs() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range s.listeners {
		out = append(out, l.tcp.Addr().(*net.TCPAddr).AddrPort())
	}
	return out
}

// Run answers until ctx ends, goes on for the time of a lame duck, waits for
// what is under way and returns: at most LameDuck + Drain after the end of ctx.
// Listen comes first.
func (s *Server) Run(ctx context.Context) error {
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	defer stopReading()
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var loops sync.WaitGroup
	for _, l := range s.listeners {
		for _, c := range l.udp {
			loops.Go(func() { s.serveUDP(working, c, l.any) })
		}
		loops.Go(func() { s.serveTCP(reading, working, l.tcp) })
	}
	<-ctx.Done()
	s.draining.Store(true)
	time.Sleep(s.cfg.LameDuck)
	stopReading()
	s.expire()
	loops.Wait()
	s.drain(stopWork)
	s.close()
	return nil
}

// expire ends the loops; what is under way can still be answered.
func (s *Server) expire() {
	for _, l := range s.listeners {
		_ = l.tcp.Close()
		for _, c := range l.udp {
			_ = c.SetReadDeadline(past)
		}
	}
}

// past is a deadline that ends a read at once.
var past = time.Unix(1, 0)

func (s *Server) drain(stopWork context.CancelFunc) {
	done := make(chan struct{})
	go func() { s.waiting.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(s.cfg.Drain):
		stopWork() // what waits is answered with SERVFAIL
		<-done
	}
}

func (s *Server) close() {
	for _, l := range s.listeners {
		_ = l.tcp.Close()
		for _, c := range l.udp {
			_ = c.Close()
		}
	}
}

// worker is the memory of one goroutine that answers.
type worker struct {
	stream bool // TCP
	q      query
	answer Answer
	out    []byte
	stats  *stats
	local  bool // the question is the zone's
}

// outcome is what is to be done with a request.
type outcome int

const (
	silence outcome = iota
	send            // worker.out
	wait            // it takes an upstream: call complete
)

// limit is the longest message that the client takes.
func (w *worker) limit(udp int) int {
	if w.stream {
		return 65535
	}
	return min(w.q.size, udp)
}

// respond answers a request as far as that takes no waiting.
func (s *Server) respond(w *worker, in []byte) outcome {
	q, code, answer := parseQuery(in)
	w.q, w.local, w.out = q, false, w.out[:0]
	w.answer.reset()
	switch {
	case !answer:
		return silence
	case code != NoError:
		return s.code(w, code)
	case q.class != classIN:
		return s.code(w, Refused)
	}
	z := s.zone.Load()
	if z == nil {
		return s.unsynced(w)
	}
	z.Answer(q.Question, &w.answer)
	if w.answer.Outside {
		return s.outside(w)
	}
	w.local = true
	if w.answer.Chase != "" && s.cfg.Forwarder != nil && q.flags&flagRD != 0 {
		return wait
	}
	w.out = appendAnswer(w.out, &w.q, &w.answer, w.limit(s.cfg.UDPSize), s.cfg.UDPSize)
	return send
}

func (s *Server) code(w *worker, code Code) outcome {
	w.out = appendCode(w.out[:0], &w.q, code, s.cfg.UDPSize)
	return send
}

// unsynced answers before there is a zone. Names of addresses may be the zone's
// too, so nobody else is asked for them.
func (s *Server) unsynced(w *worker) outcome {
	if _, in := w.q.Name.below(s.cfg.Domain); in || reverseZone(w.q.Name) {
		w.local = true
		return s.code(w, ServFail)
	}
	return s.outside(w)
}

// outside answers for a name that is not the zone's, from the cache.
func (s *Server) outside(w *worker) outcome {
	f := s.cfg.Forwarder
	transfer := w.q.Type >= TypeIXFR && w.q.Type <= TypeMAILA
	if f == nil || w.q.flags&flagRD == 0 || transfer || f.isProbe(w.q.Name) {
		return s.code(w, Refused)
	}
	if f.cfg.Hosts.answer(w.q.Question, &w.answer) {
		w.out = appendAnswer(w.out, &w.q, &w.answer, w.limit(s.cfg.UDPSize), s.cfg.UDPSize)
		return send
	}
	now := time.Now()
	hit, renew := f.cache.get(w.q.key(), now)
	f.cache.count(hit)
	if hit == nil {
		return wait
	}
	if renew {
		s.renew(w.q.key())
	}
	s.stored(w, hit, now)
	return send
}

// guard keeps a bug in answering one request from ending all.
func (s *Server) guard(w *worker) {
	if r := recover(); r != nil {
		s.stats.panics.Add(1)
		s.cfg.Log.Error("panic", "err", r, "question", strconv.Quote(w.q.Name.String()), "stack", string(debug.Stack()))
		s.code(w, ServFail)
	}
}

// observe counts an answered request, logs it where that is wanted and shows it to
// who watches.
func (s *Server) observe(w *worker, from netip.AddrPort, start time.Time) {
	took := time.Since(start)
	code := Code(w.out[3] & maskCode)
	w.stats.observe(w, from.Addr(), code, took)
	if code == NXDomain && w.local {
		s.searched(w.q.Name, from.Addr())
	}
	if s.watchers.some.Load() || s.cfg.LogQueries {
		s.show(Query{time.Now(), from, s.pod(from.Addr()), w.q.Name, w.q.Type, w.stream, code, len(w.out), took})
	}
}
