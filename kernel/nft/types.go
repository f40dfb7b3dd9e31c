// Package nft is nftables in process: transactions as plain data that print in
// nft's own words (Tx), and a Conn that commits them and reads tables, rules,
// elements and notices over netlink. No nft binary is run.
//
// It decides nothing: what the tables should hold is made by the renderers
// (proxy/nftables). It is no general library either: it has the objects and the
// parts of rules that Podlane uses.
package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
)

// Prefix begins the names of all tables that are ours.
const Prefix = "podlane-"

// MaxComment is the longest comment of an element or rule, in bytes: 254 bytes of
// user data less its head of 2 and the NUL at the end. NFT_USERDATA_MAXLEN is 256,
// but the kernel counts an element's in 8 bits, so that it refuses 255 bytes and
// with 256 drops the comment without an error (seen on 6.18). nft prints such
// comments but would itself not take one of more than 128.
const MaxComment = 251

// Family is the address family of a table (NFPROTO_*).
type Family uint8

// The families of tables that are ours.
const (
	IPv4 Family = 2
	IPv6 Family = 10
)

// FamilyOf gives the family of v6 or not.
func FamilyOf(v6 bool) Family {
	if v6 {
		return IPv6
	}
	return IPv4
}

// String gives nft's word for the family: "ip" or "ip6".
func (f Family) String() string {
	switch f {
	case IPv4:
		return "ip"
	case IPv6:
		return "ip6"
	}
	return fmt.Sprintf("family%d", uint8(f))
}

// Table identifies a table.
type Table struct {
	Family Family
	Name   string
}

func (t Table) String() string { return t.Family.String() + " " + t.Name }

// Hook is where a base chain is attached: its number in the family ip, which is
// that of ip6 too (NF_INET_*), plus one, so that the zero Hook is none.
type Hook uint8

// The hooks.
const (
	Prerouting Hook = iota + 1
	Input
	Forward
	Output
	Postrouting
)

var hookNames = [...]string{"", "prerouting", "input", "forward", "output", "postrouting"}

func (h Hook) String() string { return hookNames[h] }

// The priorities of base chains, by nft's names.
const (
	Raw    int32 = -300
	DstNAT int32 = -100
	Filter int32 = 0
	SrcNAT int32 = 100
)

// Chain is a chain. One with a Hook is a base chain; its policy is accept.
type Chain struct {
	Table    Table
	Name     string
	Hook     Hook
	Type     string // of a base chain: "nat", "filter" or "route"
	Priority int32
}

func (c Chain) String() string { return c.Table.String() + " " + c.Name }

// Type is an nft data type, by its number in nft. The kernel only keeps it; nft
// prints by it.
type Type uint8

// The types of parts of keys and data.
const (
	IPv4Addr    Type = 7
	IPv6Addr    Type = 8
	InetProto   Type = 12
	InetService Type = 13
	Mark        Type = 19
)

// AddrType gives the type of a family's addresses.
func AddrType(f Family) Type {
	if f == IPv6 {
		return IPv6Addr
	}
	return IPv4Addr
}

var typeNames = map[Type]string{
	IPv4Addr: "ipv4_addr", IPv6Addr: "ipv6_addr", InetProto: "inet_proto", InetService: "inet_service", Mark: "mark",
}

func (t Type) String() string { return typeNames[t] }

// size is the type's width in bytes; a part of a concatenation takes a multiple
// of four.
func (t Type) size() int {
	switch t {
	case IPv6Addr:
		return 16
	case InetProto:
		return 1
	case InetService:
		return 2
	}
	return 4
}

// Set is a set, or a map where Data or Verdicts is given.
type Set struct {
	Table    Table
	Name     string
	Key      []Type // more than one: a concatenation
	Data     []Type
	Verdicts bool // the data are verdicts
	Counter  bool // every element counts the packets that match it
	// Timeout, where it is not 0, makes a set to which rules add elements (Update),
	// that go this many seconds after the last time.
	Timeout uint32
}

// maxDynamic is how many elements rules may add to a set: what nft takes where it
// is not told.
const maxDynamic = 65535

func (s Set) String() string { return s.Table.String() + " " + s.Name }

func (s Set) isMap() bool { return s.Verdicts || len(s.Data) > 0 }

// VerdictCode is what a Verdict does (NF_* and NFT_*).
type VerdictCode int32

// The verdicts.
const (
	Drop   VerdictCode = 0
	Accept VerdictCode = 1
	Jump   VerdictCode = -3
	GoTo   VerdictCode = -4
	Return VerdictCode = -5
)

var verdictNames = map[VerdictCode]string{
	Drop: "drop", Accept: "accept", Jump: "jump", GoTo: "goto", Return: "return",
}

// Verdict is what becomes of a packet. Chain is of Jump and GoTo alone.
type Verdict struct {
	Code  VerdictCode
	Chain string
}

func (v Verdict) String() string {
	return strings.TrimSuffix(verdictNames[v.Code]+" "+v.Chain, " ")
}

// Counter is a counter's value.
type Counter struct{ Packets, Bytes uint64 }

// Element is an element of a set or map. Key and Data are as Concat makes them.
type Element struct {
	Key     []byte
	Data    []byte  // of a map with data
	Verdict Verdict // of a map of verdicts
	Comment string  // at most MaxComment bytes
	// Counter is what the element has counted. An element that is added with one
	// begins there; in a set with counters nil begins at zero.
	Counter *Counter
}

// Concat builds keys and data, part by part, each padded to four bytes. Its
// methods append and give the longer one.
type Concat []byte

// Addr appends an address of type ipv4_addr or ipv6_addr.
func (c Concat) Addr(a netip.Addr) Concat {
	if a.Is4() {
		b := a.As4()
		return append(c, b[:]...)
	}
	b := a.As16()
	return append(c, b[:]...)
}

// Proto appends an IP protocol number of type inet_proto.
func (c Concat) Proto(p uint8) Concat { return append(c, p, 0, 0, 0) }

// Port appends a port of type inet_service.
func (c Concat) Port(p uint16) Concat { return append(c, byte(p>>8), byte(p), 0, 0) }

// Mark appends a number of type mark.
func (c Concat) Mark(m uint32) Concat { return binary.NativeEndian.AppendUint32(c, m) }
