package dnsprobe

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// server answers whatever it is asked, unless it is paused.
type server struct {
	net.PacketConn
	at    netip.AddrPort
	pause chan bool
}

func newServer(t *testing.T, addr string) *server {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Skip("cannot listen: ", err)
	}
	s := &server{c, netip.MustParseAddrPort(c.LocalAddr().String()), make(chan bool)}
	t.Cleanup(func() { _ = c.Close() })
	go s.run()
	return s
}

func (s *server) run() {
	b, paused := make([]byte, 512), false
	for {
		_ = s.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		n, from, err := s.ReadFrom(b)
		select {
		case paused = <-s.pause:
		default:
		}
		switch {
		case err != nil:
			if errors.Is(err, net.ErrClosed) {
				return
			}
		case !paused:
			b[2] |= 0x80
			_, _ = s.WriteTo(b[:n], from)
		}
	}
}

func expect(t *testing.T, p *Prober, within time.Duration, want ...netip.Addr) {
	t.Helper()
	select {
	case got := <-p.Silent:
		if !slices.Equal(got, want) {
			t.Fatalf("silent are %v, want %v", got, want)
		}
	case <-time.After(within):
		t.Fatalf("after %v nothing is said, want that %v are silent", within, want)
	}
}

func TestProber(t *testing.T) {
	a, b := newServer(t, "127.0.0.1:0"), newServer(t, "127.0.0.2:0")
	p := New(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	p.Watch([]netip.AddrPort{a.at, b.at})
	select {
	case got := <-p.Silent:
		t.Fatalf("silent are %v, but all answer", got)
	case <-time.After(3 * time.Second):
	}
	a.pause <- true
	expect(t, p, 5*time.Second, a.at.Addr())
	_ = b.Close() // refused at once
	expect(t, p, 5*time.Second, a.at.Addr(), b.at.Addr())
	a.pause <- false
	expect(t, p, 5*time.Second, b.at.Addr())
	p.Watch([]netip.AddrPort{a.at}) // who is not watched is not silent
	expect(t, p, 5*time.Second)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestState: one lost question is nothing, two are; five answers make it good.
func TestState(t *testing.T) {
	var s state
	for i, step := range []struct {
		answered, changed, silent bool
	}{
		{false, false, false}, {true, false, false}, {false, false, false}, {false, true, true}, {false, false, true},
		{true, false, true}, {true, false, true}, {false, false, true},
		{true, false, true}, {true, false, true}, {true, false, true}, {true, false, true}, {true, true, false}, {true, false, false},
	} {
		if got := s.take(step.answered); got != step.changed || s.silent != step.silent {
			t.Fatalf("step %d: changed %t, silent %t", i, got, s.silent)
		}
	}
}
