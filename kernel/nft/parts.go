package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Part is a piece of a rule: a match or a statement, as nft's words and as the
// kernel's expressions.
type Part struct {
	Text string
	ops  []op
}

// op is one expression of the kernel's: its name and its encoded attributes.
type op struct {
	name string
	data attrs
}

// Rule is a rule. Comment, where it is not empty, is printed by nft and read
// back by Conn.Rules.
type Rule struct {
	Parts   []Part
	Comment string
}

// NewRule makes a rule of parts.
func NewRule(parts ...Part) Rule { return Rule{Parts: parts} }

func (r Rule) String() string {
	words := make([]string, 0, len(r.Parts)+1)
	for _, p := range r.Parts {
		words = append(words, p.Text)
	}
	if r.Comment != "" {
		words = append(words, fmt.Sprintf("comment %q", r.Comment))
	}
	return strings.Join(words, " ")
}

// RuleInfo is what Conn.Rules reads back of a rule: enough to see that someone
// changed it, not enough to make it again.
type RuleInfo struct {
	Chain   string
	Comment string
	Exprs   []string // the names of its expressions
	Counter Counter  // of its counter, where it has one
}

// Info gives what will be read back of the rule in a chain.
func (r Rule) Info(chain string) RuleInfo {
	info := RuleInfo{Chain: chain, Comment: r.Comment}
	for _, p := range r.Parts {
		for _, e := range p.ops {
			info.Exprs = append(info.Exprs, e.name)
		}
	}
	return info
}

// The kernel's registers: reg32 counts in words of 32 bits, from NFT_REG32_00.
const (
	regVerdict = 0
	reg32      = 8
)

// Field is something of a packet that is looked up: a Part of its own it is not.
type Field struct {
	Text string
	size int
	load func(reg uint32) op
}

func payload(text string, base, offset, size uint32) Field {
	return Field{text, int(size), func(reg uint32) op {
		return op{"payload", attrs(nil).u32(1, reg).u32(2, base).u32(3, offset).u32(4, size)}
	}}
}

const (
	networkHeader   = 1
	transportHeader = 2
)

// Saddr is the packet's source address.
func Saddr(f Family) Field {
	if f == IPv6 {
		return payload("ip6 saddr", networkHeader, 8, 16)
	}
	return payload("ip saddr", networkHeader, 12, 4)
}

// Daddr is the packet's destination address.
func Daddr(f Family) Field {
	if f == IPv6 {
		return payload("ip6 daddr", networkHeader, 24, 16)
	}
	return payload("ip daddr", networkHeader, 16, 4)
}

// Dport is the destination port of TCP, UDP and SCTP.
func Dport() Field { return payload("th dport", transportHeader, 2, 2) }

const (
	metaMark     = 3
	metaPriority = 2
	metaL4Proto  = 16
)

func loadMeta(key, reg uint32) op { return op{"meta", attrs(nil).u32(1, reg).u32(2, key)} }

// L4Proto is the packet's transport protocol.
func L4Proto() Field {
	return Field{"meta l4proto", 1, func(reg uint32) op { return loadMeta(metaL4Proto, reg) }}
}

// RandomMod is a random number below n, plus offset.
func RandomMod(n int, offset uint32) Field {
	text := fmt.Sprintf("numgen random mod %d", n)
	if offset > 0 {
		text += fmt.Sprintf(" offset %d", offset)
	}
	return Field{text, 4, func(reg uint32) op {
		return op{"numgen", attrs(nil).u32(1, reg).u32(2, uint32(n)).u32(3, 1).u32(4, offset)}
	}}
}

// Count counts the packets that come to it.
func Count() Part { return Part{"counter", []op{counterOp(Counter{})}} }

// OneIn matches one packet of n, at random.
func OneIn(n int) Part {
	return Part{fmt.Sprintf("numgen random mod %d 0", n), []op{RandomMod(n, 0).load(reg32), cmp(true, make([]byte, 4))}}
}

// concat loads the fields into registers that follow one another.
func concat(fields []Field) (text string, ops []op) {
	reg := uint32(reg32)
	words := make([]string, len(fields))
	for i, f := range fields {
		words[i] = f.Text
		ops = append(ops, f.load(reg))
		reg += uint32(align(f.size) / 4)
	}
	return strings.Join(words, " . "), ops
}

// In matches where the fields are in the set.
func In(s Set, fields ...Field) Part {
	text, ops := concat(fields)
	return Part{text + " @" + s.Name, append(ops, op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32)})}
}

// NotIn matches where the fields are not in the set.
func NotIn(s Set, fields ...Field) Part {
	text, ops := concat(fields)
	const invert = 1
	return Part{text + " != @" + s.Name, append(ops, op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32).u32(5, invert)})}
}

// Vmap gives the packet the verdict the map has for the fields.
func Vmap(s Set, fields ...Field) Part {
	text, ops := concat(fields)
	look := op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32).u32(3, regVerdict)}
	return Part{text + " vmap @" + s.Name, append(ops, look)}
}

// Priority is the packet's skb priority.
func Priority() Field {
	return Field{"meta priority", 4, func(reg uint32) op { return loadMeta(metaPriority, reg) }}
}

func storeMeta(key uint32) op { return op{"meta", attrs(nil).u32(2, key).u32(3, reg32)} }

// PriorityMap sets the packet's skb priority to what the map, whose data are of
// type mark, has for the fields. Where it has nothing, the rule does not match.
func PriorityMap(s Set, fields ...Field) Part {
	text, ops := concat(fields)
	look := op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32).u32(3, reg32)}
	return Part{fmt.Sprintf("meta priority set %s map @%s", text, s.Name), append(ops, look, storeMeta(metaPriority))}
}

// PriorityNone sets the packet's skb priority to zero.
func PriorityNone() Part {
	zero := op{"immediate", attrs(nil).u32(1, reg32).value(2, make([]byte, 4))}
	return Part{"meta priority set none", []op{zero, storeMeta(metaPriority)}}
}

// DNATMap sends the connection to the address and port the map has for the
// fields. Where it has none, the rule does not match.
//
// nft takes the words "dnat ip addr . port to" and prints them as "dnat ip to".
func DNATMap(f Family, s Set, fields ...Field) Part {
	text, ops := concat(fields)
	port := uint32(reg32 + align(AddrType(f).size())/4)
	ops = append(ops,
		op{"lookup", attrs(nil).str(1, s.Name).u32(2, reg32).u32(3, reg32)},
		op{"nat", attrs(nil).u32(1, 1).u32(2, uint32(f)).u32(3, reg32).u32(5, port)})
	return Part{fmt.Sprintf("dnat %s addr . port to %s map @%s", f, text, s.Name), ops}
}

// DNAT sends the connection to an address and port.
func DNAT(to netip.AddrPort) Part {
	f := FamilyOf(to.Addr().Is6())
	port := uint32(reg32 + AddrType(f).size()/4)
	immediate := func(reg uint32, b []byte) op { return op{"immediate", attrs(nil).u32(1, reg).value(2, b)} }
	return Part{"dnat to " + to.String(), []op{
		immediate(reg32, to.Addr().AsSlice()), immediate(port, binary.BigEndian.AppendUint16(nil, to.Port())),
		{"nat", attrs(nil).u32(1, 1).u32(2, uint32(f)).u32(3, reg32).u32(5, port)}}}
}

// Update adds the fields to a set with a Timeout, or begins their time anew.
func Update(s Set, fields ...Field) Part {
	text, ops := concat(fields)
	const update = 1
	return Part{fmt.Sprintf("update @%s { %s }", s.Name, text), append(ops, op{"dynset", attrs(nil).str(1, s.Name).u32(3, update).u32(4, reg32)})}
}

// Within matches a field that is an address in the prefix.
func Within(f Field, p netip.Prefix) Part { return within(f, p, true) }

// NotWithin matches a field that is an address outside the prefix.
func NotWithin(f Field, p netip.Prefix) Part { return within(f, p, false) }

func within(f Field, p netip.Prefix, is bool) Part {
	p = p.Masked()
	a := p.Addr().AsSlice()
	words := []string{f.Text, p.String()}
	if !is {
		words = []string{f.Text, "!=", p.String()}
	}
	ops := []op{f.load(reg32)}
	if p.IsSingleIP() {
		words[len(words)-1] = p.Addr().String()
	} else {
		mask := make([]byte, len(a))
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		ops = append(ops, op{"bitwise", attrs(nil).u32(1, reg32).u32(2, reg32).u32(3, uint32(len(a))).value(4, mask).value(5, make([]byte, len(a)))})
	}
	return Part{strings.Join(words, " "), append(ops, cmp(is, a))}
}

// fibType matches by the kind of route that an address of the packet has.
func fibType(text string, flags uint32, is bool) Part {
	const addrType, local = 3, 2 // NFT_FIB_RESULT_ADDRTYPE, RTN_LOCAL
	fib := op{"fib", attrs(nil).u32(1, reg32).u32(2, addrType).u32(3, flags)}
	return Part{text, []op{fib, cmp(is, binary.NativeEndian.AppendUint32(nil, local))}}
}

// DaddrLocal matches packets to one of the node's own addresses.
func DaddrLocal() Part { return fibType("fib daddr type local", 2, true) }

// DaddrNotLocal matches all other packets.
func DaddrNotLocal() Part { return fibType("fib daddr type != local", 2, false) }

// SaddrLocal matches packets from one of the node's own addresses.
func SaddrLocal() Part { return fibType("fib saddr type local", 1, true) }

// StateInvalid matches packets that connection tracking takes for no part of the
// connection they seem to belong to.
func StateInvalid() Part {
	const state, invalid = 0, 1 // NFT_CT_STATE, NF_CT_STATE_INVALID_BIT
	load := op{"ct", attrs(nil).u32(1, reg32).u32(2, state)}
	return Part{"ct state invalid", []op{load, bitwise(invalid, 0), cmp(false, make([]byte, 4))}}
}

func cmp(eq bool, data []byte) op {
	var code uint32
	if !eq {
		code = 1
	}
	return op{"cmp", attrs(nil).u32(1, reg32).u32(2, code).value(3, data)}
}

func bitwise(mask, xor uint32) op {
	num := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	return op{"bitwise", attrs(nil).u32(1, reg32).u32(2, reg32).u32(3, 4).value(4, num(mask)).value(5, num(xor))}
}

// L4Is matches a transport protocol by its number and nft's name for it.
func L4Is(number uint8, name string) Part {
	return Part{"meta l4proto " + name, []op{loadMeta(metaL4Proto, reg32), cmp(true, []byte{number})}}
}

// MarkHas matches packets whose mark has all bits of mask.
func MarkHas(mask uint32) Part {
	want := binary.NativeEndian.AppendUint32(nil, mask)
	return Part{fmt.Sprintf("meta mark & 0x%08x == 0x%08x", mask, mask),
		[]op{loadMeta(metaMark, reg32), bitwise(mask, 0), cmp(true, want)}}
}

func setMark(text string, mask, xor uint32) Part {
	return Part{text, []op{loadMeta(metaMark, reg32), bitwise(mask, xor), storeMeta(metaMark)}}
}

// MarkSet sets bits of the packet's mark.
func MarkSet(bits uint32) Part {
	return setMark(fmt.Sprintf("meta mark set meta mark | 0x%08x", bits), ^bits, bits)
}

// MarkClear clears bits of the packet's mark.
func MarkClear(bits uint32) Part {
	return setMark(fmt.Sprintf("meta mark set meta mark & 0x%08x", ^bits), ^bits, 0)
}

// StatusDNAT matches packets of connections whose destination was translated.
func StatusDNAT() Part {
	const status, dnat = 2, 1 << 5 // NFT_CT_STATUS, IPS_DST_NAT
	load := op{"ct", attrs(nil).u32(1, reg32).u32(2, status)}
	return Part{"ct status dnat", []op{load, bitwise(dnat, 0), cmp(false, make([]byte, 4))}}
}

// RejectReset answers a TCP packet with a reset.
func RejectReset() Part {
	return Part{"reject with tcp reset", []op{{"reject", attrs(nil).u32(1, 1).u8(2, 0)}}}
}

// Reject answers with ICMP port unreachable. The kernel limits the rate of these
// for each peer, that of resets it does not.
func Reject(f Family) Part {
	code := uint8(3)
	if f == IPv6 {
		code = 4
	}
	return Part{"reject", []op{{"reject", attrs(nil).u32(1, 0).u8(2, code)}}}
}

// Masquerade gives the connection an address of the outgoing link as its source
// and a random source port.
func Masquerade() Part {
	const fullyRandom = 1 << 4
	return Part{"masquerade fully-random", []op{{"masq", attrs(nil).u32(1, fullyRandom)}}}
}

// Do gives the packet a verdict.
func Do(code VerdictCode, chain string) Part {
	v := Verdict{code, chain}
	return Part{v.String(), []op{{"immediate", attrs(nil).u32(1, regVerdict).verdict(2, v)}}}
}
