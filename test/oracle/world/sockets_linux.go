package world

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/packet"
)

const receiveBuffer = 16 << 20

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// wireEnd is the far end of a wire.
type wireEnd struct {
	fd  int
	to  unix.SockaddrLinklayer // the near end
	buf []byte
}

func openEnd(index int, near net.HardwareAddr) (wireEnd, error) {
	all := int(htons(unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return wireEnd{}, err
	}
	e := wireEnd{fd: fd, buf: make([]byte, 2048), to: unix.SockaddrLinklayer{Ifindex: index, Halen: 6}}
	copy(e.to.Addr[:], near)
	grow(fd)
	return e, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: index})
}

func htons(v uint16) uint16 { return v>>8 | v<<8 }

func grow(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
}

// send puts a packet on the wire, towards the node.
func (e *wireEnd) send(p packet.Probe) error {
	e.to.Protocol = htons(unix.ETH_P_IP)
	if p.Dst.Addr().Is6() {
		e.to.Protocol = htons(unix.ETH_P_IPV6)
	}
	return again(func() error { return unix.Sendto(e.fd, p.Bytes(), 0, &e.to) })
}

func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// read gives the next packet that the node sent; nil is none yet.
func (e *wireEnd) read() (b []byte, err error) {
	for {
		n, from, err := unix.Recvfrom(e.fd, e.buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil, nil
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
			continue
		case err != nil:
			return nil, err
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING {
			return e.buf[:n], nil
		}
	}
}

// rawSocket sees what the node receives itself.
type rawSocket struct {
	fd       int
	v6       bool
	protocol byte
	buf, oob []byte
}

func (w *World) openSockets() error {
	for i, family := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return fmt.Errorf("raw socket: %w", err)
		}
		w.raw[i] = fd
		icmp := byte(unix.IPPROTO_ICMP)
		if family == unix.AF_INET6 {
			icmp = unix.IPPROTO_ICMPV6
		}
		for _, protocol := range []byte{byte(cluster.TCP), byte(cluster.UDP), byte(cluster.SCTP), icmp} {
			s, err := openRaw(family, protocol)
			if err != nil {
				return fmt.Errorf("raw socket of protocol %d: %w", protocol, err)
			}
			w.node = append(w.node, s)
		}
	}
	return nil
}

func openRaw(family int, protocol byte) (rawSocket, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return rawSocket{}, err
	}
	grow(fd)
	s := rawSocket{fd: fd, v6: family == unix.AF_INET6, protocol: protocol, buf: make([]byte, 2048), oob: make([]byte, 128)}
	if s.v6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	return s, err
}

// read gives the next packet of a probe; more says that there may be others.
func (s *rawSocket) read() (seen packet.Seen, ok, more bool, err error) {
	n, oobn, _, from, err := unix.Recvmsg(s.fd, s.buf, s.oob, 0)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return packet.Seen{}, false, false, nil
	case errors.Is(err, unix.EINTR):
		return packet.Seen{}, false, true, nil
	case err != nil:
		return packet.Seen{}, false, false, err
	case !s.v6:
		seen, ok = packet.Parse(s.buf[:n])
		return seen, ok, true, nil
	}
	// An IPv6 raw socket gives no header: the addresses come beside.
	src := netip.AddrFrom16(from.(*unix.SockaddrInet6).Addr)
	seen, ok = packet.ParseTransport(src, packetInfo(s.oob[:oobn]), s.protocol, s.buf[:n])
	return seen, ok, true, nil
}

func packetInfo(oob []byte) netip.Addr {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.Addr{}
	}
	for _, m := range messages {
		if m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 16 {
			a, _ := netip.AddrFromSlice(m.Data[:16])
			return a
		}
	}
	return netip.Addr{}
}

// sendFromNode sends a packet as the node itself does.
func (w *World) sendFromNode(p packet.Probe) error {
	b := p.Bytes()
	return again(func() error {
		if p.Dst.Addr().Is4() {
			return unix.Sendto(w.raw[0], b, 0, &unix.SockaddrInet4{Addr: p.Dst.Addr().As4()})
		}
		return unix.Sendto(w.raw[1], b, 0, &unix.SockaddrInet6{Addr: p.Dst.Addr().As16()})
	})
}

func (w *World) closeSockets() {
	for _, e := range w.ends {
		_ = unix.Close(e.fd)
	}
	for _, s := range w.node {
		_ = unix.Close(s.fd)
	}
	for _, fd := range w.raw {
		if fd > 0 {
			_ = unix.Close(fd)
		}
	}
}
