package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// socket is a UDP socket of one family that says by which of the node's addresses a
// packet came, and sends from whichever it is told. What it sends is never
// fragmented here. It is none of package net's, which the kernel would wake whenever
// a packet that was sent is through, or is given up.
type socket struct {
	fd    int
	stop  int         // an eventfd that ends receive where it waits
	ended atomic.Bool // ends it where there is always something to read
	v6    bool
}

// waiting is how many bytes may wait for neighbours: the longest probes to more
// than a thousand nodes that are gone.
const waiting = 4 << 20

func listen(v6 bool, port uint16) (*socket, error) {
	family, level := unix.AF_INET, unix.IPPROTO_IP
	options := [][2]int{{unix.IP_PKTINFO, 1}, {unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}}
	var at unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if v6 {
		family, level = unix.AF_INET6, unix.IPPROTO_IPV6
		options = [][2]int{{unix.IPV6_RECVPKTINFO, 1}, {unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}, {unix.IPV6_V6ONLY, 1}}
		at = &unix.SockaddrInet6{Port: int(port)}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("UDP socket: %w", err)
	}
	for _, o := range options {
		err = errors.Join(err, unix.SetsockoptInt(fd, level, o[0], o[1]))
	}
	// Without the right to it, fewer packets wait.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, waiting)
	if err == nil {
		err = unix.Bind(fd, at)
	}
	stop := -1
	if err == nil {
		stop, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("UDP port %d: %w", port, err)
	}
	return &socket{fd: fd, stop: stop, v6: v6}, nil
}

// end makes receive give net.ErrClosed, from now on. It is for before Close.
func (s *socket) end() {
	s.ended.Store(true)
	_, _ = unix.Write(s.stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

// Close is for when nobody uses the socket any more.
func (s *socket) Close() error { return errors.Join(unix.Close(s.fd), unix.Close(s.stop)) }

// receive gives a packet, who sent it, and to which address.
func (s *socket) receive(buf, oob []byte) (n int, from netip.AddrPort, to netip.Addr, err error) {
	n, oobn, sender, err := s.read(buf, oob)
	if err != nil {
		return 0, from, to, err
	}
	switch a := sender.(type) {
	case *unix.SockaddrInet4:
		from = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		from = netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port))
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return 0, from, to, err
	}
	for _, m := range msgs {
		switch {
		case !s.v6 && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			to = netip.AddrFrom4([4]byte(m.Data[8:12]))
		case s.v6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			to = netip.AddrFrom16([16]byte(m.Data[:16]))
		}
	}
	return n, from, to, nil
}

// read waits in the kernel, on a thread of its own, for something to read and for
// nothing else.
func (s *socket) read(buf, oob []byte) (n, oobn int, from unix.Sockaddr, err error) {
	for !s.ended.Load() {
		n, oobn, _, from, err = unix.Recvmsg(s.fd, buf, oob, 0)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return n, oobn, from, err
		}
		wait := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}, {Fd: int32(s.stop), Events: unix.POLLIN}}
		_, _ = unix.Poll(wait, -1)
	}
	return 0, 0, nil, net.ErrClosed
}

// send sends a packet from an address of the node; the zero Addr leaves the choice
// to the kernel. What waits for the neighbours of nodes that are gone fills the socket:
// it does not wait until there is room, which would take seconds, in which the agent does
// nothing else.
func (s *socket) send(b []byte, from netip.Addr, to netip.AddrPort) error {
	var oob []byte
	switch {
	case !from.IsValid():
	case s.v6:
		oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
	default:
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	return unix.Sendmsg(s.fd, b, oob, s.sockaddr(to), unix.MSG_DONTWAIT)
}

func (s *socket) sockaddr(to netip.AddrPort) unix.Sockaddr {
	if s.v6 {
		return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}
