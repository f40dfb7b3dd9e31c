package link

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Numbers of <linux/veth.h>, <linux/neighbour.h> and <linux/rtnetlink.h> that
// golang.org/x/sys lacks.
const (
	skipStats    = 8 // RTEXT_FILTER_SKIP_STATS
	vethInfoPeer = 1
	ndaDst       = 1
	ndaLLAddr    = 2
	ndaPort      = 6
	ndaVNI       = 7
	ndaProtocol  = 12
	nudPermanent = 0x80
)

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// linkHeader is struct ifinfomsg. An up link has IFF_UP both as value and in the
// mask of what changes.
func linkHeader(index int, up bool) message {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	if up {
		binary.NativeEndian.PutUint32(b[8:], unix.IFF_UP)
		binary.NativeEndian.PutUint32(b[12:], unix.IFF_UP)
	}
	return message{b}
}

// linkByName asks for a link by its name.
func linkByName(name string) []byte {
	m := linkHeader(0, false)
	m.text(unix.IFLA_IFNAME, name)
	m.u32(unix.IFLA_EXT_MASK, skipStats)
	return m.b
}

// newVXLAN makes the whole link in one message, so that it never exists with
// another MAC (udev), with an MTU of the kernel's choice, or learning.
func newVXLAN(name string, l Link, device int) []byte {
	m := linkHeader(0, true)
	m.common(name, l)
	m.nest(unix.IFLA_LINKINFO, func() {
		m.text(unix.IFLA_INFO_KIND, string(l.Kind))
		if l.Kind == VXLAN {
			m.nest(unix.IFLA_INFO_DATA, func() { m.vxlan(l.VXLAN, device) })
		}
	})
	return m.b
}

func (m *message) common(name string, l Link) {
	m.text(unix.IFLA_IFNAME, name)
	m.u32(unix.IFLA_MTU, uint32(l.MTU))
	if l.MAC != (MAC{}) {
		m.mac(unix.IFLA_ADDRESS, l.MAC)
	}
	m.u32(unix.IFLA_GROUP, Group)
}

func (m *message) vxlan(s VXLANSpec, device int) {
	m.u32(unix.IFLA_VXLAN_ID, s.ID)
	if device != 0 {
		m.u32(unix.IFLA_VXLAN_LINK, uint32(device))
	}
	local := uint16(unix.IFLA_VXLAN_LOCAL)
	if s.Local.Is6() {
		local = unix.IFLA_VXLAN_LOCAL6
	}
	m.addr(local, s.Local)
	m.u16be(unix.IFLA_VXLAN_PORT, s.Port)
	m.u8(unix.IFLA_VXLAN_LEARNING, 0)
}

// newVeth makes a pair with one end here and the other in the namespace netns.
func newVeth(name string, l Link, peer string, peerMAC MAC, netns int) []byte {
	m := linkHeader(0, true)
	m.common(name, l)
	m.oneQueue()
	m.nest(unix.IFLA_LINKINFO, func() {
		m.text(unix.IFLA_INFO_KIND, string(Veth))
		m.nest(unix.IFLA_INFO_DATA, func() {
			m.nest(vethInfoPeer, func() {
				m.b = append(m.b, linkHeader(0, false).b...)
				m.text(unix.IFLA_IFNAME, peer)
				m.u32(unix.IFLA_MTU, uint32(l.MTU))
				m.mac(unix.IFLA_ADDRESS, peerMAC)
				m.oneQueue()
				m.u32(unix.IFLA_NET_NS_FD, uint32(netns))
			})
		})
	})
	return m.b
}

// oneQueue asks for the one queue each way that a veth works with in any case. Unasked, the
// kernel makes one for each CPU and takes all but the first away again before it answers, for
// which it waits for all CPUs, at each end.
func (m *message) oneQueue() {
	m.u32(unix.IFLA_NUM_TX_QUEUES, 1)
	m.u32(unix.IFLA_NUM_RX_QUEUES, 1)
}

// setLink changes what differs; MTU 0 and the zero MAC leave theirs.
func setLink(index, mtu int, mac MAC, up bool) []byte {
	m := linkHeader(index, up)
	if mtu != 0 {
		m.u32(unix.IFLA_MTU, uint32(mtu))
	}
	if mac != (MAC{}) {
		m.mac(unix.IFLA_ADDRESS, mac)
	}
	return m.b
}

// address is struct ifaddrmsg and its attributes. IPv6 addresses are used at
// once, without duplicate address detection (the pod network is routed), and
// bring no route with them.
func address(index int, p netip.Prefix) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1] = familyOf(p.Addr()), uint8(p.Bits())
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	m := message{b}
	m.addr(unix.IFA_LOCAL, p.Addr())
	m.addr(unix.IFA_ADDRESS, p.Addr())
	if p.Addr().Is6() {
		m.u32(unix.IFA_FLAGS, unix.IFA_F_NODAD|unix.IFA_F_NOPREFIXROUTE)
	}
	return m.b
}

// neighbour is struct ndmsg and its attributes.
func neighbour(index int, a netip.Addr, mac MAC) []byte {
	m := ndHeader(familyOf(a), index, 0)
	m.addr(ndaDst, a)
	if mac != (MAC{}) {
		m.mac(ndaLLAddr, mac)
		m.u8(ndaProtocol, Protocol)
	}
	return m.b
}

// fdbEntry names an entry; dst may be the zero Addr in deletions.
func fdbEntry(index int, mac MAC, dst netip.Addr) []byte {
	m := ndHeader(unix.AF_BRIDGE, index, unix.NTF_SELF)
	m.mac(ndaLLAddr, mac)
	if dst.IsValid() {
		m.addr(ndaDst, dst)
	}
	return m.b
}

func ndHeader(family uint8, index int, flags uint8) message {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = family
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint16(b[8:], nudPermanent)
	b[10] = flags
	return message{b}
}

// route is struct rtmsg and its attributes.
func route(dst netip.Prefix, r Route, index int) []byte {
	m := routeHeader(dst)
	m.b[7] = unix.RTN_UNICAST
	switch {
	case r.Unreachable:
		m.b[7] = unix.RTN_UNREACHABLE
	case !r.Via.IsValid() && dst.Addr().Is4():
		m.b[6] = unix.RT_SCOPE_LINK
	}
	if r.OnLink {
		binary.NativeEndian.PutUint32(m.b[8:], unix.RTNH_F_ONLINK)
	}
	if index != 0 {
		m.u32(unix.RTA_OIF, uint32(index))
	}
	if r.Via.IsValid() {
		m.addr(unix.RTA_GATEWAY, r.Via)
	}
	if r.Src.IsValid() {
		m.addr(unix.RTA_PREFSRC, r.Src)
	}
	if r.MTU != 0 {
		m.nest(unix.RTA_METRICS, func() { m.u32(unix.RTAX_MTU, uint32(r.MTU)) })
	}
	return m.b
}

// noRoute names one of our routes for its deletion.
func noRoute(dst netip.Prefix) []byte {
	m := routeHeader(dst)
	m.b[6] = unix.RT_SCOPE_NOWHERE
	return m.b
}

func routeHeader(dst netip.Prefix) message {
	b := make([]byte, unix.SizeofRtMsg)
	b[0], b[1] = familyOf(dst.Addr()), uint8(dst.Bits())
	b[4], b[5] = unix.RT_TABLE_MAIN, Protocol
	m := message{b}
	m.addr(unix.RTA_DST, dst.Addr())
	return m
}
