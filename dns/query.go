package dns

import "encoding/binary"

const headerSize = 12

// The flags of a message's header (RFC 1035, section 4.1.1; RFC 4035).
const (
	flagQR = 1 << 15
	flagAA = 1 << 10
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4

	maskOpcode = 0xf << 11
	maskCode   = 0xf
)

const (
	classIN = 1
	// flagDO is DNSSEC OK in the flags of an OPT record (RFC 3225).
	flagDO = 1 << 15
)

// query is a parsed request. It points into the message it was parsed from.
type query struct {
	Question
	id       uint16
	flags    uint16
	class    uint16
	question []byte // name, type and class as they came; nil where they are broken
	edns     bool
	do       bool
	size     int // largest answer over UDP: at least 512
}

// parseQuery reads a request. Where answer is false nothing may be sent back: it
// is no request at all. A code other than NoError is the answer.
func parseQuery(b []byte) (q query, code Code, answer bool) {
	if len(b) < headerSize {
		return q, 0, false
	}
	q.id, q.flags, q.size = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), minUDP
	if q.flags&flagQR != 0 {
		return q, 0, false
	}
	if q.flags&maskOpcode != 0 {
		return q, NotImp, true
	}
	if binary.BigEndian.Uint16(b[4:]) != 1 || !q.parseQuestion(b) {
		return q, FormErr, true
	}
	return q, q.parseRecords(b), true
}

// minUDP is the answer every client takes over UDP (RFC 1035, section 4.2.1).
const minUDP = 512

// parseQuestion reads name, type and class. Nothing before the name could be
// pointed at, so it is not compressed.
func (q *query) parseQuestion(b []byte) bool {
	end := headerSize
	for {
		if end >= len(b) || b[end] > 63 {
			return false
		}
		if b[end] == 0 {
			break
		}
		end += 1 + int(b[end])
	}
	end++
	if end-headerSize > maxName || end+4 > len(b) {
		return false
	}
	q.Name = lowered(b[headerSize:end])
	q.Type = Type(binary.BigEndian.Uint16(b[end:]))
	q.class = binary.BigEndian.Uint16(b[end+2:])
	q.question = b[headerSize : end+4]
	q.Seed = q.id
	return true
}

// lowered gives a name in wire form in lower case. The bytes of lengths are
// below 'A', so they need no care.
func lowered(wire []byte) Name {
	var buf [maxName]byte
	for i, c := range wire {
		buf[i] = lower(c)
	}
	return Name(buf[:len(wire)])
}

// parseRecords reads what follows the question: at most the OPT record counts
// (RFC 6891). The message must end where its records do.
func (q *query) parseRecords(b []byte) Code {
	plain := int(binary.BigEndian.Uint16(b[6:])) + int(binary.BigEndian.Uint16(b[8:]))
	extra := int(binary.BigEndian.Uint16(b[10:]))
	at := headerSize + len(q.question)
	code := NoError
	for i := range plain + extra {
		r, ok := recordAt(b, at)
		if !ok {
			return FormErr
		}
		if r.kind == TypeOPT {
			if i < plain || q.edns || r.fixed != at+1 {
				return FormErr
			}
			code = q.parseOPT(b, r)
		}
		at = r.end
	}
	if at != len(b) || q.Type == TypeOPT {
		return FormErr
	}
	return code
}

func (q *query) parseOPT(b []byte, r record) Code {
	q.edns = true
	q.size = max(minUDP, int(binary.BigEndian.Uint16(b[r.fixed+2:])))
	ttl := binary.BigEndian.Uint32(b[r.fixed+4:])
	q.do = ttl&flagDO != 0
	if ttl>>16&0xff != 0 {
		return BadVers
	}
	return NoError
}

// record is where a record lies in a message.
type record struct {
	kind  Type
	fixed int // of type, class, TTL and length, behind the name
	data  int
	end   int
}

// recordAt finds the borders of the record at an offset.
func recordAt(b []byte, at int) (record, bool) {
	at = skipName(b, at)
	if at < 0 || at+10 > len(b) {
		return record{}, false
	}
	r := record{kind: Type(binary.BigEndian.Uint16(b[at:])), fixed: at, data: at + 10}
	r.end = r.data + int(binary.BigEndian.Uint16(b[at+8:]))
	return r, r.end <= len(b)
}

// skipName gives the offset behind a name, which may end in a pointer, or -1.
func skipName(b []byte, at int) int {
	for at < len(b) {
		switch n := b[at]; {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			return at + 2
		case n > 63:
			return -1
		default:
			at += 1 + int(n)
		}
	}
	return -1
}
