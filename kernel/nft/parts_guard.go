package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
)

const (
	metaIifname  = 6
	metaIifgroup = 21
)

// FromGroup matches packets that come in by a link of a group.
func FromGroup(group uint32) Part {
	return Part{fmt.Sprintf("iifgroup %d", group), []op{loadMeta(metaIifgroup, reg32), cmp(true, binary.NativeEndian.AppendUint32(nil, group))}}
}

// NotFrom matches packets that come in by another link than this one.
func NotFrom(dev string) Part {
	name := make([]byte, 16)
	copy(name, dev)
	return Part{fmt.Sprintf("iifname != %q", dev), []op{loadMeta(metaIifname, reg32), cmp(false, name)}}
}

// ToUDP matches packets to a UDP port.
func ToUDP(port uint16) Part {
	return Part{fmt.Sprintf("udp dport %d", port), append(L4Is(17, "udp").ops, Dport().load(reg32), cmp(true, binary.BigEndian.AppendUint16(nil, port)))}
}

// Notrack keeps conntrack from a packet.
func Notrack() Part { return Part{"notrack", []op{{"notrack", nil}}} }

// NoWayBack matches packets whose source has no route by the link that they came
// in by.
func NoWayBack() Part {
	const oif, saddrAndIif = 1, 1 | 8 // NFT_FIB_RESULT_OIF, NFTA_FIB_F_SADDR and _IIF
	fib := op{"fib", attrs(nil).u32(1, reg32).u32(2, oif).u32(3, saddrAndIif)}
	return Part{"fib saddr . iif oif 0", []op{fib, cmp(true, make([]byte, 4))}}
}

// Offsets inside a VXLAN packet, from its UDP header: UDP 8, VXLAN 8, Ethernet
// 14, IP.
const (
	innerType = 8 + 8 + 12
	innerIP   = 8 + 8 + 14
)

// InnerIs matches VXLAN packets that carry a family, at the hook where they come
// to the node.
func InnerIs(f Family) Part {
	typ := uint16(0x0800)
	if f == IPv6 {
		typ = 0x86dd
	}
	return Part{fmt.Sprintf("@th,%d,16 0x%x", innerType*8, typ),
		[]op{payload("", transportHeader, innerType, 2).load(reg32), cmp(true, binary.BigEndian.AppendUint16(nil, typ))}}
}

func innerSaddr(f Family) Field {
	if f == IPv6 {
		return payload(fmt.Sprintf("@th,%d,128", (innerIP+8)*8), transportHeader, innerIP+8, 16)
	}
	return payload(fmt.Sprintf("@th,%d,32", (innerIP+12)*8), transportHeader, innerIP+12, 4)
}

// InnerWithin matches VXLAN packets of the family inner whose inner source is in
// the prefix.
func InnerWithin(inner Family, p netip.Prefix) Part { return Within(innerSaddr(inner), p) }

// InnerPair matches VXLAN packets whose outer source, together with the first bits
// of their inner one, is in the set.
func InnerPair(s Set, outer, inner Family, bits int) Part {
	saddr, in := Saddr(outer), innerSaddr(inner)
	mask := []byte(net.CIDRMask(bits, in.size*8))
	second := reg32 + uint32(saddr.size)/4
	ops := []op{saddr.load(reg32), in.load(second)}
	text := in.Text
	if bits < in.size*8 {
		m, _ := netip.AddrFromSlice(mask)
		text = fmt.Sprintf("%s & %s", text, m)
		ops = append(ops, op{"bitwise", attrs(nil).u32(1, second).u32(2, second).u32(3, uint32(in.size)).value(4, mask).value(5, make([]byte, in.size))})
	}
	return Part{fmt.Sprintf("%s . %s @%s", saddr.Text, text, s.Name), append(ops, op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32)})}
}
