package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// socket is a UDP socket of one family that says by which of the node's addresses a
// packet came, and sends from whichever it is told. What it sends is never
// fragmented here.
type socket struct {
	*net.UDPConn
	v6 bool
}

// waiting is how many bytes may wait for neighbours: the longest probes to more
// than a thousand nodes that are gone.
const waiting = 4 << 20

func listen(ctx context.Context, v6 bool, port uint16) (*socket, error) {
	network, level := "udp4", unix.IPPROTO_IP
	options := [][2]int{{unix.IP_PKTINFO, 1}, {unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE}}
	if v6 {
		network, level = "udp6", unix.IPPROTO_IPV6
		options = [][2]int{{unix.IPV6_RECVPKTINFO, 1}, {unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE}, {unix.IPV6_V6ONLY, 1}}
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var errs error
		err := c.Control(func(fd uintptr) {
			for _, o := range options {
				errs = errors.Join(errs, unix.SetsockoptInt(int(fd), level, o[0], o[1]))
			}
			// Without the right to it, fewer packets wait.
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, waiting)
		})
		return errors.Join(err, errs)
	}}
	c, err := config.ListenPacket(ctx, network, fmt.Sprintf(":%d", port))
	if err != nil {
		return nil, err
	}
	return &socket{c.(*net.UDPConn), v6}, nil
}

// receive gives a packet, who sent it, and to which address.
func (s *socket) receive(buf, oob []byte) (n int, from netip.AddrPort, to netip.Addr, err error) {
	n, oobn, _, from, err := s.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		return 0, from, to, err
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
	return n, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), to, nil
}

// send sends a packet from an address of the node; the zero Addr leaves the choice
// to the kernel.
func (s *socket) send(b []byte, from netip.Addr, to netip.AddrPort) error {
	var oob []byte
	switch {
	case !from.IsValid():
	case s.v6:
		oob = unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
	default:
		oob = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	// What waits for the neighbours of nodes that are gone fills the socket. To wait
	// until there is room would take seconds, in which the agent does nothing else.
	sockaddr := s.sockaddr(to)
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), b, oob, sockaddr, unix.MSG_DONTWAIT)
		return true
	})
	return errors.Join(err, sendErr)
}

func (s *socket) sockaddr(to netip.AddrPort) unix.Sockaddr {
	if s.v6 {
		return &unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
}
