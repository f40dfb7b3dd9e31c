// Package conntrack lists and deletes the flows that the kernel tracks, over
// netlink in process, and keeps the limits of its table. It decides nothing:
// which flows are to go is said by proxy/stale.
//
// It has a codec of its own on a socket of mdlayher/netlink, because
// vishvananda/netlink reads the whole table of all protocols into memory, several
// copies of it, and asks for a flow's deletion by its tuple alone, which may by
// then be that of another flow.
package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ErrPartial is a list during which the table was rebuilt: what was given is
// true, but something may be missing.
var ErrPartial = errors.New("conntrack: the table changed during the list, which may miss flows")

// Flow is one tracked flow.
type Flow struct {
	Protocol uint8 // IP protocol number
	// Orig is the flow as its first packet came, Reply as an answer comes: after
	// DNAT, Reply.Src is who really answers.
	Orig, Reply Tuple
	ID          uint32 // the kernel's name of this flow and of no later one
	Zone        uint16
	Answered    bool // a packet came back
}

// Tuple is one direction of a flow.
type Tuple struct{ Src, Dst netip.AddrPort }

func (t Tuple) String() string { return fmt.Sprintf("%s > %s", t.Src, t.Dst) }

func (f Flow) String() string {
	return fmt.Sprintf("protocol %d %s, answered %s", f.Protocol, f.Orig, f.Reply)
}

// The numbers of include/uapi/linux/netfilter/nfnetlink_conntrack.h, and of the
// filter flags of net/netfilter/nf_internals.h.
const (
	subsystem = 1 // NFNL_SUBSYS_CTNETLINK

	msgGet    = 1
	msgDelete = 2

	ctaTupleOrig  = 1
	ctaTupleReply = 2
	ctaStatus     = 3
	ctaID         = 12
	ctaZone       = 18
	ctaFilter     = 25

	tupleIP    = 1
	tupleProto = 2

	ipV4Src = 1
	ipV4Dst = 2
	ipV6Src = 3
	ipV6Dst = 4

	protoNum     = 1
	protoSrcPort = 2
	protoDstPort = 3

	filterOrigFlags  = 1
	filterReplyFlags = 2
	flagProtoNum     = 1 << 3

	seenReply = 1 << 1 // of enum ip_conntrack_status
)

// parseFlow reads the attributes of a flow; ok is false for one without
// addresses.
func parseFlow(b []byte) (f Flow, ok bool) {
	each(b, func(typ uint16, v []byte) {
		switch typ {
		case ctaTupleOrig:
			f.Orig, f.Protocol = parseTuple(v)
		case ctaTupleReply:
			f.Reply, _ = parseTuple(v)
		case ctaStatus:
			f.Answered = be32(v)&seenReply != 0
		case ctaID:
			f.ID = be32(v)
		case ctaZone:
			f.Zone = be16(v)
		}
	})
	return f, f.Orig.Dst.IsValid() && f.Reply.Src.IsValid()
}

func parseTuple(b []byte) (t Tuple, protocol uint8) {
	var src, dst netip.Addr
	var sport, dport uint16
	each(b, func(typ uint16, v []byte) {
		switch typ {
		case tupleIP:
			each(v, func(typ uint16, v []byte) {
				switch a, _ := netip.AddrFromSlice(v); typ {
				case ipV4Src, ipV6Src:
					src = a
				case ipV4Dst, ipV6Dst:
					dst = a
				}
			})
		case tupleProto:
			each(v, func(typ uint16, v []byte) {
				switch typ {
				case protoNum:
					if len(v) > 0 {
						protocol = v[0]
					}
				case protoSrcPort:
					sport = be16(v)
				case protoDstPort:
					dport = be16(v)
				}
			})
		}
	})
	return Tuple{netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)}, protocol
}

// each walks netlink attributes; what is malformed ends the walk.
func each(b []byte, f func(typ uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func be16(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
