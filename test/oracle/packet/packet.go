// Package packet makes the first packet of a TCP, UDP or SCTP connection, with a
// cookie in it, and reads what becomes of it: the same packet elsewhere, perhaps with
// other addresses, or the refusal that came back. It sends nothing.
package packet

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"

	"github.com/podlane/podlane/cluster"
)

// Probe is the first packet of a connection. The cookie travels where no address
// translation changes it: in TCP's sequence number, the data of UDP, the initiate
// tag of SCTP.
type Probe struct {
	Src, Dst netip.AddrPort
	Protocol cluster.Protocol
	Cookie   uint32
	// Flags are TCP's; 0 is SYN alone.
	Flags byte
}

// The flags of TCP that a Probe may have.
const (
	SYN = 2
	RST = 4
	ACK = 16
)

// Kind says what a packet seen is.
type Kind uint8

// The kinds of packets.
const (
	Itself      Kind = iota // the probe
	Reset                   // a TCP reset in answer to it
	Unreachable             // an ICMP error in answer to it
)

// Seen is a packet that belongs to a probe.
type Seen struct {
	Probe
	Kind Kind
}

const (
	headerV4, headerV6 = 20, 40
	icmpV4, icmpV6     = 1, 58
)

// Bytes gives the IP packet.
func (p Probe) Bytes() []byte {
	t := p.transport()
	src, dst := p.Src.Addr(), p.Dst.Addr()
	var b []byte
	if src.Is4() {
		b = make([]byte, headerV4, headerV4+len(t))
		b[0], b[8], b[9] = 0x45, 64, byte(p.Protocol)
		binary.BigEndian.PutUint16(b[2:], uint16(headerV4+len(t)))
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], checksum(b, 0))
	} else {
		b = make([]byte, headerV6, headerV6+len(t))
		b[0], b[6], b[7] = 0x60, byte(p.Protocol), 64
		binary.BigEndian.PutUint16(b[4:], uint16(len(t)))
		copy(b[8:], src.AsSlice())
		copy(b[24:], dst.AsSlice())
	}
	return append(b, t...)
}

func (p Probe) transport() []byte {
	var t []byte
	at := 0 // of the checksum
	switch p.Protocol {
	case cluster.TCP:
		t, at = make([]byte, 20), 16
		binary.BigEndian.PutUint32(t[4:], p.Cookie)
		t[12], t[13] = 5<<4, p.flags()
		binary.BigEndian.PutUint16(t[14:], 1024)
	case cluster.UDP:
		t, at = make([]byte, 12), 6
		binary.BigEndian.PutUint16(t[4:], 12)
		binary.BigEndian.PutUint32(t[8:], p.Cookie)
	case cluster.SCTP:
		return p.sctpInit()
	}
	p.ports(t)
	sum := checksum(t, p.pseudo(len(t)))
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(t[at:], sum)
	return t
}

func (p Probe) flags() byte {
	if p.Flags == 0 {
		return SYN
	}
	return p.Flags
}

func (p Probe) ports(t []byte) {
	binary.BigEndian.PutUint16(t, p.Src.Port())
	binary.BigEndian.PutUint16(t[2:], p.Dst.Port())
}

// sctpInit is an INIT chunk (RFC 9260, 3.3.2) in a packet of its own.
func (p Probe) sctpInit() []byte {
	t := make([]byte, 32)
	p.ports(t)
	c := t[12:]
	c[0] = 1 // INIT
	binary.BigEndian.PutUint16(c[2:], 20)
	binary.BigEndian.PutUint32(c[4:], p.Cookie)
	binary.BigEndian.PutUint32(c[8:], 65536) // advertised receiver window
	binary.BigEndian.PutUint16(c[12:], 1)    // outbound and inbound streams
	binary.BigEndian.PutUint16(c[14:], 1)
	binary.LittleEndian.PutUint32(t[8:], crc32.Checksum(t, crc32.MakeTable(crc32.Castagnoli)))
	return t
}

// pseudo is the sum of the pseudo header.
func (p Probe) pseudo(length int) uint32 {
	sum := uint32(p.Protocol) + uint32(length)
	for _, a := range []netip.Addr{p.Src.Addr(), p.Dst.Addr()} {
		sum = add(a.AsSlice(), sum)
	}
	return sum
}

func add(b []byte, sum uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	return sum
}

func checksum(b []byte, sum uint32) uint16 {
	sum = add(b, sum)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Parse reads an IP packet; ok says that it belongs to a probe.
func Parse(b []byte) (s Seen, ok bool) {
	src, dst, protocol, rest, ok := network(b)
	if !ok {
		return Seen{}, false
	}
	return ParseTransport(src, dst, protocol, rest)
}

// network reads the IP header, of a packet that may be cut at its end.
func network(b []byte) (src, dst netip.Addr, protocol byte, rest []byte, ok bool) {
	switch {
	case len(b) >= headerV4 && b[0]>>4 == 4:
		length := int(b[0]&15) * 4
		if len(b) < length {
			return
		}
		return addr(b[12:16]), addr(b[16:20]), b[9], b[length:], true
	case len(b) >= headerV6 && b[0]>>4 == 6:
		return addr(b[8:24]), addr(b[24:40]), b[6], b[headerV6:], true
	}
	return
}

func addr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

// ParseTransport reads what follows the IP header.
func ParseTransport(src, dst netip.Addr, protocol byte, t []byte) (s Seen, ok bool) {
	if protocol == icmpV4 || protocol == icmpV6 {
		return quoted(protocol, t)
	}
	if len(t) < 8 {
		return Seen{}, false
	}
	s.Protocol = cluster.Protocol(protocol)
	s.Src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(t))
	s.Dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(t[2:]))
	switch {
	case s.Protocol == cluster.TCP && len(t) >= 14 && t[13]&RST != 0:
		s.Kind, s.Cookie = Reset, binary.BigEndian.Uint32(t[8:])-1
	case s.Protocol == cluster.TCP:
		s.Cookie = binary.BigEndian.Uint32(t[4:])
	case s.Protocol == cluster.UDP && len(t) >= 12:
		s.Cookie = binary.BigEndian.Uint32(t[8:])
	case s.Protocol == cluster.SCTP && len(t) >= 20:
		s.Cookie = binary.BigEndian.Uint32(t[16:])
	default:
		return Seen{}, false
	}
	return s, true
}

// quoted reads the packet that an ICMP "destination unreachable" is about.
func quoted(protocol byte, t []byte) (Seen, bool) {
	unreachable := map[byte]byte{icmpV4: 3, icmpV6: 1}[protocol]
	if len(t) < 8 || t[0] != unreachable {
		return Seen{}, false
	}
	src, dst, inner, rest, ok := network(t[8:])
	if !ok || inner == icmpV4 || inner == icmpV6 {
		return Seen{}, false
	}
	s, ok := ParseTransport(src, dst, inner, rest)
	s.Kind = Unreachable
	return s, ok
}
