package nft

import "encoding/binary"

// attrs is a list of netlink attributes under construction. Numbers are in
// network byte order, as all of nf_tables wants them.
type attrs []byte

const nested = 0x8000 // NLA_F_NESTED

func align(n int) int { return (n + 3) &^ 3 }

func (a attrs) pad() attrs {
	for len(a)%4 != 0 {
		a = append(a, 0)
	}
	return a
}

func (a attrs) head(typ uint16, n int) attrs {
	a = binary.NativeEndian.AppendUint16(a, uint16(4+n))
	return binary.NativeEndian.AppendUint16(a, typ)
}

func (a attrs) bytes(typ uint16, b []byte) attrs {
	return append(a.head(typ, len(b)), b...).pad()
}

func (a attrs) str(typ uint16, s string) attrs {
	a = append(a.head(typ, len(s)+1), s...)
	return append(a, 0).pad()
}

func (a attrs) u8(typ uint16, v uint8) attrs { return append(a.head(typ, 1), v).pad() }

func (a attrs) u32(typ uint16, v uint32) attrs {
	return binary.BigEndian.AppendUint32(a.head(typ, 4), v)
}

func (a attrs) u64(typ uint16, v uint64) attrs {
	return binary.BigEndian.AppendUint64(a.head(typ, 8), v)
}

// begin opens a nested attribute; end, given the offset begin gave, closes it.
func (a attrs) begin(typ uint16) (attrs, int) { return a.head(typ|nested, 0), len(a) }

func (a attrs) end(at int) attrs {
	binary.NativeEndian.PutUint16(a[at:], uint16(len(a)-at))
	return a
}

// value appends a nested attribute that holds one NFTA_DATA_VALUE.
func (a attrs) value(typ uint16, b []byte) attrs {
	a, at := a.begin(typ)
	return a.bytes(dataValue, b).end(at)
}

func (a attrs) verdict(typ uint16, v Verdict) attrs {
	a, at := a.begin(typ)
	a, in := a.begin(dataVerdict)
	a = a.u32(verdictCode, uint32(v.Code))
	if v.Chain != "" {
		a = a.str(verdictChain, v.Chain)
	}
	return a.end(in).end(at)
}

// comment appends the user data in which nft keeps a comment: one TLV of type 0.
func (a attrs) comment(typ uint16, s string) attrs {
	if s == "" {
		return a
	}
	n := len(s) + 1
	a = append(a.head(typ, n+2), 0, byte(n))
	return append(append(a, s...), 0).pad()
}

// each walks the attributes of b, with the flags of their types taken off.
// What is malformed ends the walk.
func each(b []byte, f func(typ uint16, v []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&0x3fff, b[4:n])
		b = b[min(align(n), len(b)):]
	}
}

// be32 gives a number of an attribute, 0 where it is too short for one.
func be32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func be64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

// cstr gives the string of an attribute, without the NUL that ends it.
func cstr(b []byte) string {
	if n := len(b); n > 0 && b[n-1] == 0 {
		b = b[:n-1]
	}
	return string(b)
}

// parseComment takes the comment out of user data, "" where there is none.
func parseComment(b []byte) string {
	for len(b) >= 2 && int(b[1]) <= len(b)-2 {
		end := 2 + int(b[1])
		if b[0] == 0 {
			return cstr(b[2:end])
		}
		b = b[end:]
	}
	return ""
}

// swapped gives the number that the bytes of n, in the machine's order, are in
// network order.
func swapped(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}
