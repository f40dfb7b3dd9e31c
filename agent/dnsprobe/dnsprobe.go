// Package dnsprobe finds out which of a node's DNS servers hang, much sooner than
// the API does: it asks each of them all the time. It decides nothing; what is
// silent goes to proxy.Config.
package dnsprobe

import (
	"context"
	"encoding/binary"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/podlane/podlane/internal/newest"
)

// A server that hangs is silent after at most every + fails * patience = 0.7 s.
const (
	every    = 200 * time.Millisecond
	patience = 250 * time.Millisecond
	fails    = 2 // in a row, until a server is silent
	answers  = 5 // in a row, until it no longer is
)

// Prober asks the servers that it is told of.
type Prober struct {
	// Silent has the addresses that do not answer, sorted, whenever they change.
	Silent  newest.Chan[[]netip.Addr]
	log     *slog.Logger
	watched []netip.AddrPort // of the caller of Watch
	targets newest.Chan[[]netip.AddrPort]
}

// New makes a Prober that knows no server.
func New(log *slog.Logger) *Prober {
	return &Prober{Silent: make(newest.Chan[[]netip.Addr], 1), log: log, targets: make(newest.Chan[[]netip.AddrPort], 1)}
}

// Watch says which servers are to be asked from now on. One goroutine may call it.
func (p *Prober) Watch(servers []netip.AddrPort) {
	if !slices.Equal(servers, p.watched) {
		p.watched = servers
		p.targets.Send(servers)
	}
}

// state is what is known of a server.
type state struct {
	silent  bool
	against int // answers in a row that speak against silent
}

// take takes in how the last question went and says whether that changes silent.
func (s *state) take(answered bool) bool {
	if answered != s.silent {
		s.against = 0
		return false
	}
	s.against++
	if s.silent && s.against < answers || !s.silent && s.against < fails {
		return false
	}
	*s = state{silent: !s.silent}
	return true
}

// Run asks until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	known := map[netip.AddrPort]*state{}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case servers := <-p.targets:
			if p.replace(known, servers) {
				p.tell(known)
			}
			continue
		case <-tick.C:
		}
		if p.ask(ctx, known) {
			p.tell(known)
		}
	}
}

// replace forgets the servers that are not asked any more.
func (p *Prober) replace(known map[netip.AddrPort]*state, servers []netip.AddrPort) (changed bool) {
	for at, s := range known {
		if !slices.Contains(servers, at) {
			delete(known, at)
			changed = changed || s.silent
		}
	}
	for _, at := range servers {
		if known[at] == nil {
			known[at] = &state{}
		}
	}
	return changed
}

// ask asks all servers at once.
func (p *Prober) ask(ctx context.Context, known map[netip.AddrPort]*state) (changed bool) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for at, s := range known {
		wg.Go(func() {
			answered := replies(at)
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() != nil || !s.take(answered) {
				return
			}
			changed = true
			if s.silent {
				p.log.Warn("this node's DNS server does not answer: its queries go to another node's, where there is one", "addr", at)
			} else {
				p.log.Info("this node's DNS server answers again", "addr", at)
			}
		})
	}
	wg.Wait()
	return changed
}

func (p *Prober) tell(known map[netip.AddrPort]*state) {
	var silent []netip.Addr
	for at, s := range known {
		if s.silent {
			silent = append(silent, at.Addr())
		}
	}
	slices.SortFunc(silent, netip.Addr.Compare)
	p.Silent.Send(slices.Compact(silent))
}

// replies asks a server for its status (RFC 1035, opcode 2), which every server
// answers at once, if only with NOTIMP, and never by asking another one.
func replies(at netip.AddrPort) bool {
	c, err := net.Dial("udp", at.String())
	if err != nil {
		return false
	}
	defer c.Close()
	id := uint16(rand.Uint32())
	var q [12]byte
	binary.BigEndian.PutUint16(q[:], id)
	q[2] = 2 << 3
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(q[:]); err != nil {
		return false
	}
	var b [512]byte
	for {
		n, err := c.Read(b[:])
		if err != nil {
			return false
		}
		if n >= 12 && binary.BigEndian.Uint16(b[:]) == id && b[2]&0x80 != 0 {
			return true
		}
	}
}
