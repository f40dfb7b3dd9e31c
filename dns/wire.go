package dns

import (
	"encoding/binary"
	"strings"
)

// optSize is the length of the OPT record that answers a client's.
const optSize = 11

// pointer marks two bytes that stand for the rest of a name (RFC 1035, section
// 4.1.4).
const pointer = 0xc000

// encoder appends one message to a buffer, no longer than limit.
type encoder struct {
	buf   []byte
	start int // of the message in buf: over TCP its length comes first
	limit int // length of buf that must not be passed
	q     *query
	udp   int // the size of requests we take ourselves, for our OPT record
}

// appendAnswer appends the message that gives a to the client. Where it would be
// longer than limit bytes, it has as many records as fit and, unless only
// additional ones are missing, the flag TC (RFC 2181, section 9).
func appendAnswer(buf []byte, q *query, a *Answer, limit, udp int) []byte {
	e := encoder{buf: buf, start: len(buf), q: q, udp: udp, limit: len(buf) + limit - q.optLen()}
	flags := uint16(flagAA)
	if a.Code == Refused {
		flags = 0
	}
	e.header(flags, a.Code)
	whole := e.section(6, a.Answer) && e.section(8, a.Authority)
	if whole {
		e.section(10, a.Extra)
	} else {
		e.buf[e.start+2] |= flagTC >> 8
	}
	e.opt(a.Code)
	return e.buf
}

// appendCode appends a message without records.
func appendCode(buf []byte, q *query, code Code, udp int) []byte {
	e := encoder{buf: buf, start: len(buf), q: q, udp: udp}
	e.header(0, code)
	e.opt(code)
	return e.buf
}

func (q *query) optLen() int {
	if q.edns {
		return optSize
	}
	return 0
}

func (e *encoder) header(flags uint16, code Code) {
	q := e.q
	flags |= flagQR | flagRA | q.flags&(maskOpcode|flagRD|flagCD) | uint16(code)&maskCode
	n := uint16(0)
	if q.question != nil {
		n = 1
	}
	b := binary.BigEndian.AppendUint16(e.buf, q.id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, n)
	b = append(b, 0, 0, 0, 0, 0, 0)
	e.buf = append(b, q.question...)
}

// opt appends our OPT record, and counts it, where the client sent one.
func (e *encoder) opt(code Code) {
	if !e.q.edns {
		return
	}
	b := append(e.buf, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(TypeOPT))
	b = binary.BigEndian.AppendUint16(b, uint16(e.udp))
	b = append(b, byte(code>>4), 0, 0, 0)
	if e.q.do {
		b[len(b)-2] = flagDO >> 8
	}
	e.buf = append(b, 0, 0)
	e.count(10, 1)
}

func (e *encoder) count(at, n int) {
	c := e.buf[e.start+at:]
	binary.BigEndian.PutUint16(c, binary.BigEndian.Uint16(c)+uint16(n))
}

// section appends records and counts them at an offset of the header. It says
// whether all of them had room.
func (e *encoder) section(at int, records []Record) bool {
	for i := range records {
		before := len(e.buf)
		e.record(&records[i])
		if len(e.buf) > e.limit {
			e.buf = e.buf[:before]
			e.count(at, i)
			return false
		}
	}
	e.count(at, len(records))
	return true
}

func (e *encoder) record(r *Record) {
	e.name(r.Name)
	b := binary.BigEndian.AppendUint16(e.buf, uint16(r.Type))
	b = binary.BigEndian.AppendUint16(b, classIN)
	b = binary.BigEndian.AppendUint32(b, r.TTL)
	e.buf = append(b, 0, 0)
	from := len(e.buf)
	e.data(r)
	binary.BigEndian.PutUint16(e.buf[from-2:], uint16(len(e.buf)-from))
}

func (e *encoder) data(r *Record) {
	switch r.Type {
	case TypeA:
		a := r.Addr.As4()
		e.buf = append(e.buf, a[:]...)
	case TypeAAAA:
		a := r.Addr.As16()
		e.buf = append(e.buf, a[:]...)
	case TypeSRV: // its target is not compressed (RFC 2782)
		for _, v := range [3]uint16{r.SRV.Priority, r.SRV.Weight, r.SRV.Port} {
			e.buf = binary.BigEndian.AppendUint16(e.buf, v)
		}
		e.buf = append(e.buf, r.Target...)
	case TypeTXT, TypeHINFO:
		e.buf = append(append(e.buf, byte(len(r.Text))), r.Text...)
		if r.Type == TypeHINFO {
			e.buf = append(e.buf, 0) // the second string, of the operating system
		}
	case TypeSOA:
		e.soa(r)
	default:
		e.name(r.Target)
	}
}

func (e *encoder) soa(r *Record) {
	e.name(r.Target)
	e.name(r.Name.child("hostmaster"))
	for _, v := range [5]uint32{r.Serial, soaRefresh, soaRetry, soaExpire, r.TTL} {
		e.buf = binary.BigEndian.AppendUint32(e.buf, v)
	}
}

// name appends a name; the longest end that it shares with the question's name
// becomes a pointer there. The empty Name is the question's.
func (e *encoder) name(n Name) {
	asked := e.q.Name
	if n == "" {
		n = asked
	}
	for len(n) > 1 {
		if len(n) <= len(asked) && strings.HasSuffix(string(asked), string(n)) && asked.boundary(len(asked)-len(n)) {
			e.buf = binary.BigEndian.AppendUint16(e.buf, pointer|uint16(headerSize+len(asked)-len(n)))
			return
		}
		_, rest := n.cut()
		if rest == "" {
			break
		}
		e.buf = append(e.buf, n[:len(n)-len(rest)]...)
		n = rest
	}
	e.buf = append(e.buf, 0)
}

// boundary says whether a label of n begins at an offset: that the bytes from
// there look like a name does not say so.
func (n Name) boundary(at int) bool {
	i := 0
	for i < at {
		i += 1 + int(n[i])
	}
	return i == at
}
