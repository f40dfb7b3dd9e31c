package qperf

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// One connection of tcp_crr: the client connects and sends a byte, the server sends one back and
// closes. As the server closes first, the client's port is free at once; were it the client, its
// 28,000 ports would be used up within seconds.

// makeConnections is the client's side.
func makeConnections(f *flow) {
	family, to := rawAddr(f.server)
	for !f.past(f.now()) {
		if err := f.connection(family, to); err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ECONNREFUSED) {
				f.failed, f.over = fmt.Errorf("connection %d: %w", f.sent.Messages+1, err), f.now()
				return
			}
			if t := f.now(); t >= f.from && !f.past(t) {
				f.sent.Errors++
			}
		}
	}
}

func (f *flow) connection(family int, to unix.Sockaddr) error {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := bound(fd); err != nil {
		return err
	}
	if err := f.dial(fd, to); err != nil {
		return err
	}
	if !f.on(fd).writeStream([]byte{1}) || !f.count(&f.sent, 1, f.now()) {
		return nil
	}
	b := make([]byte, 2)
	for got := 0; ; {
		n, err := unix.Read(fd, b)
		switch {
		case err == nil && n == 0 && got == 1:
			f.count(&f.received, 1, f.now())
			return nil
		case err == nil && n == 0:
			return unix.ECONNRESET
		case err != nil && !f.again(err):
			return err
		}
		got += max(n, 0)
	}
}

// on is f for one of its connections; what it counts is not f's.
func (f *flow) on(fd int) *flow {
	return &flow{fd: fd, stop: f.stop, base: f.base, until: f.until}
}

// dial connects, and looks every tick whether the time is up: a lost SYN is sent again after a second.
func (f *flow) dial(fd int, to unix.Sockaddr) error {
	for {
		err := unix.Connect(fd, to)
		switch {
		case err == nil, errors.Is(err, unix.EISCONN):
			return nil
		case !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.EALREADY) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return err
		case f.past(f.now()):
			return err
		}
	}
}

// answerConnections is the server's side, one connection after the other. Its clock may end
// before the client's: it goes on answering for a little, so that nobody is refused.
func answerConnections(f *flow) {
	ready := []unix.PollFd{{Fd: int32(f.listener), Events: unix.POLLIN}}
	for !f.stop.Load() && f.now() < f.until+3*tick {
		if n, err := unix.Poll(ready, int(tick.Milliseconds())); n < 1 || err != nil {
			continue // a tick without one
		}
		fd, _, err := unix.Accept4(f.listener, unix.SOCK_CLOEXEC)
		if err != nil {
			continue
		}
		_ = bound(fd)
		c := f.on(fd)
		c.until += 3 * tick
		if b := make([]byte, 1); c.readStream(b) && c.writeStream(b) {
			f.count(&f.received, 1, f.now())
			f.count(&f.sent, 1, f.now())
		}
		_ = unix.Close(fd)
	}
}

// bound limits every call on a socket by tick.
func bound(fd int) error {
	tv := unix.NsecToTimeval(int64(tick))
	return errors.Join(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
}

func rawAddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
