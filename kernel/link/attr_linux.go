package link

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"
)

// attribute is one decoded attribute of a message. Dumps of thousands of objects
// are walked on every start and notice, so this allocates nothing.
type attribute struct {
	typ  uint16
	data []byte
}

// attributes walks attributes laid out as netlink(7) says; a malformed rest ends
// the walk.
func attributes(b []byte) iter.Seq[attribute] {
	return func(yield func(attribute) bool) {
		for len(b) >= unix.SizeofRtAttr {
			n := int(binary.NativeEndian.Uint16(b))
			if n < unix.SizeofRtAttr || n > len(b) {
				return
			}
			typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if !yield(attribute{typ, b[unix.SizeofRtAttr:n]}) {
				return
			}
			b = b[min((n+3)&^3, len(b)):]
		}
	}
}

func (a attribute) u8() uint8 {
	if len(a.data) < 1 {
		return 0
	}
	return a.data[0]
}

func (a attribute) u16be() uint16 {
	if len(a.data) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(a.data)
}

func (a attribute) u32() uint32 {
	if len(a.data) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(a.data)
}

// text gives a string without its terminating zero.
func (a attribute) text() string {
	n := len(a.data)
	if n > 0 && a.data[n-1] == 0 {
		n--
	}
	return string(a.data[:n])
}

// addr gives an address by its length, or the zero Addr.
func (a attribute) addr() netip.Addr {
	ip, _ := netip.AddrFromSlice(a.data)
	return ip
}

// mac gives an Ethernet address; ok is false for anything else, as the 4 or 16
// bytes of a tunnel's end.
func (a attribute) mac() (m MAC, ok bool) {
	if len(a.data) != len(m) {
		return m, false
	}
	return MAC(a.data), true
}

// message is a request's body while it is built: a fixed header, then attributes.
type message struct{ b []byte }

func (m *message) raw(typ uint16, data []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(data)))
	m.b = binary.NativeEndian.AppendUint16(m.b, typ)
	m.b = append(m.b, data...)
	m.pad()
}

func (m *message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) u8(typ uint16, v uint8)        { m.raw(typ, []byte{v}) }
func (m *message) u16be(typ, v uint16)           { m.raw(typ, binary.BigEndian.AppendUint16(nil, v)) }
func (m *message) u32(typ uint16, v uint32)      { m.raw(typ, binary.NativeEndian.AppendUint32(nil, v)) }
func (m *message) text(typ uint16, s string)     { m.raw(typ, append([]byte(s), 0)) }
func (m *message) addr(typ uint16, a netip.Addr) { m.raw(typ, a.AsSlice()) }
func (m *message) mac(typ uint16, mac MAC)       { m.raw(typ, mac[:]) }

// nest puts what fill adds inside one attribute.
func (m *message) nest(typ uint16, fill func()) {
	at := len(m.b)
	m.raw(typ|unix.NLA_F_NESTED, nil)
	fill()
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
}
