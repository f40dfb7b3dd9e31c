package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxRequest is more than any request has: a question and an OPT record.
	maxRequest = 4096
	// socketBuffer lets a burst wait that comes while all cores are busy.
	socketBuffer = 1 << 20
)

// listen opens the TCP socket of an address first: without SO_REUSEPORT, it is
// what fails when another server has the address.
func listen(a netip.AddrPort, sockets int) (*listener, error) {
	var err error
	for range 5 { // with port 0, UDP may not be free where TCP is
		var l *listener
		if l, err = listenOnce(a, sockets); err == nil || a.Port() != 0 {
			return l, err
		}
	}
	return nil, err
}

func listenOnce(a netip.AddrPort, sockets int) (*listener, error) {
	v := "4"
	if a.Addr().Is6() {
		v = "6"
	}
	lc := net.ListenConfig{}
	tcp, err := lc.Listen(context.Background(), "tcp"+v, a.String())
	if err != nil {
		return nil, err
	}
	l := &listener{tcp: tcp.(*net.TCPListener), any: a.Addr().IsUnspecified()}
	port := tcp.Addr().(*net.TCPAddr).AddrPort().Port()
	lc.Control = func(_, _ string, c syscall.RawConn) error { return setup(c, l.any, v == "6") }
	for range sockets {
		c, err := lc.ListenPacket(context.Background(), "udp"+v, netip.AddrPortFrom(a.Addr(), port).String())
		if err != nil {
			_ = tcp.Close()
			for _, c := range l.udp {
				_ = c.Close()
			}
			return nil, err
		}
		l.udp = append(l.udp, c.(*net.UDPConn))
	}
	return l, nil
}

// setup lets several sockets share the port, and on an unspecified address asks
// for the one that each request was sent to: the answer must come from there.
func setup(c syscall.RawConn, any, v6 bool) error {
	var err error
	if ctl := c.Control(func(fd uintptr) { err = setupFD(int(fd), any, v6) }); ctl != nil {
		return ctl
	}
	return err
}

// serveUDP answers what comes in on one socket until reading is stopped.
func (s *Server) serveUDP(ctx context.Context, c *net.UDPConn, any bool) {
	w := &worker{stats: s.stats.add()}
	in := make([]byte, maxRequest)
	var oob []byte
	if any {
		oob = make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	}
	for {
		n, oobn, _, from, err := c.ReadMsgUDPAddrPort(in, oob)
		if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // whatever it is, it must not eat a core
			continue
		}
		r := datagram{c: c, from: from, start: time.Now()}
		if oobn > 0 {
			r.oob = replySource(oob[:oobn])
		}
		s.datagram(ctx, w, in[:n], r)
	}
}

// datagram is where a request came from.
type datagram struct {
	c     *net.UDPConn
	from  netip.AddrPort
	oob   []byte
	start time.Time
}

func (s *Server) datagram(ctx context.Context, w *worker, in []byte, r datagram) {
	switch s.respondGuarded(w, in) {
	case send:
		s.write(w, r)
	case wait:
		select {
		case s.pending <- struct{}{}:
			s.waitUDP(ctx, w, r)
		default:
			s.rejected()
			s.code(w, ServFail)
			s.write(w, r)
		}
	}
}

func (s *Server) write(w *worker, r datagram) {
	s.observe(w, r.from, r.start)
	_, _, _ = r.c.WriteMsgUDPAddrPort(w.out, r.oob, r.from)
}

// waitUDP answers in a goroutine of its own, which has a copy of everything.
func (s *Server) waitUDP(ctx context.Context, w *worker, r datagram) {
	r.oob = slices.Clone(r.oob)
	own := &worker{q: w.q, local: w.local, stats: w.stats}
	own.q.question = slices.Clone(w.q.question)
	own.answer = Answer{Chase: w.answer.Chase, Answer: slices.Clone(w.answer.Answer)}
	s.waiting.Go(func() {
		defer func() { <-s.pending }()
		s.completeGuarded(ctx, own)
		s.write(own, r)
	})
}

// respondGuarded is respond with a panic as SERVFAIL.
func (s *Server) respondGuarded(w *worker, in []byte) (o outcome) {
	o = send // what guard leaves
	defer s.guard(w)
	return s.respond(w, in)
}

func (s *Server) completeGuarded(ctx context.Context, w *worker) {
	defer s.guard(w)
	s.complete(ctx, w)
}

// replySource turns the packet info of a request into that of its answer: the
// same address of ours, whatever link the route says.
func replySource(oob []byte) []byte {
	h, data, _, err := unix.ParseOneSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	switch {
	case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
		binary.NativeEndian.PutUint32(data, 0) // ipi_ifindex
	case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
		if a := netip.AddrFrom16([16]byte(data[:16])); !a.IsLinkLocalUnicast() {
			binary.NativeEndian.PutUint32(data[16:], 0) // ipi6_ifindex
		}
	default:
		return nil
	}
	return oob
}

func setupFD(fd int, any, v6 bool) error {
	level, name := unix.IPPROTO_IP, unix.IP_PKTINFO
	if v6 {
		level, name = unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		return fmt.Errorf("SO_REUSEPORT: %w", err)
	}
	// The kernel grants what net.core.rmem_max allows.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBuffer)
	if !any {
		return nil
	}
	if err := unix.SetsockoptInt(fd, level, name, 1); err != nil {
		return fmt.Errorf("packet info: %w", err)
	}
	return nil
}
