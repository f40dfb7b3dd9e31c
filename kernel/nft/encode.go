package nft

import (
	"encoding/binary"
	"slices"
)

// Flags of netlink messages (linux/netlink.h).
const (
	flagRequest = 0x1
	flagAck     = 0x4
	flagDump    = 0x300
	flagExcl    = 0x200
	flagCreate  = 0x400
	flagAppend  = 0x800
)

const headLen = 16 + 4 // struct nlmsghdr and struct nfgenmsg

// batch is a transaction as bytes. The message with sequence number seq+1+i is
// of operation ops[i]; seq and the number after the last are of the frame.
type batch struct {
	buf  []byte
	seq  uint32
	of   []int // message → index of its operation
	from []int // message → index of its first element
	last int   // offset of the last message
}

// open starts a message; close, given its offset, ends it.
func (b *batch) open(typ, flags uint16, family uint8) int {
	at := len(b.buf)
	b.buf = append(b.buf, make([]byte, headLen)...)
	binary.NativeEndian.PutUint16(b.buf[at+4:], typ)
	binary.NativeEndian.PutUint16(b.buf[at+6:], flags|flagRequest)
	binary.NativeEndian.PutUint32(b.buf[at+8:], b.seq+uint32(len(b.of)))
	b.buf[at+16] = family
	return at
}

func (b *batch) close(at int) {
	binary.NativeEndian.PutUint32(b.buf[at:], uint32(len(b.buf)-at))
}

// frame appends a batch delimiter.
func (b *batch) frame(typ uint16) {
	at := b.open(typ, 0, 0)
	binary.BigEndian.PutUint16(b.buf[at+18:], subsystem)
	b.close(at)
}

// message appends the message of an operation; fill appends its attributes.
func (b *batch) message(o, from int, typ, flags uint16, f Family, fill func(a attrs) attrs) {
	b.of, b.from = append(b.of, o), append(b.from, from)
	b.last = b.open(subsystem<<8|typ, flags, uint8(f))
	b.buf = fill(b.buf)
	b.close(b.last)
}

// encode makes the bytes of a transaction whose first sequence number is seq, in
// the memory of buf. Only the last message asks for an acknowledgement; errors come
// for all.
func (tx *Tx) encode(seq uint32, buf []byte) *batch {
	b := &batch{seq: seq, buf: slices.Grow(buf[:0], tx.size+2*headLen)}
	b.frame(batchBegin)
	for i := range tx.ops {
		b.op(i, &tx.ops[i])
	}
	flags := binary.NativeEndian.Uint16(b.buf[b.last+6:])
	binary.NativeEndian.PutUint16(b.buf[b.last+6:], flags|flagAck)
	b.of = append(b.of, -1)
	b.frame(batchEnd)
	b.of = b.of[:len(b.of)-1]
	return b
}

func (b *batch) op(i int, o *txOp) {
	switch {
	case o.table != nil:
		b.message(i, 0, pick(o.verb, msgNewTable, msgDelTable), createFlags(o.verb), o.table.Family,
			func(a attrs) attrs {
				a = a.str(tableName, o.table.Name)
				if o.owned {
					a = a.u32(tableFlags, tableOwner)
				}
				return a
			})
	case o.rule != nil:
		b.message(i, 0, msgNewRule, flagCreate|flagAppend, o.chain.Table.Family, o.encodeRule)
	case o.chain != nil && o.verb == flush:
		b.message(i, 0, msgDelRule, 0, o.chain.Table.Family, func(a attrs) attrs {
			return a.str(ruleTable, o.chain.Table.Name).str(ruleChain, o.chain.Name)
		})
	case o.chain != nil:
		b.message(i, 0, pick(o.verb, msgNewChain, msgDelChain), createFlags(o.verb), o.chain.Table.Family, o.encodeChain)
	case o.elems != nil:
		b.elements(i, o)
	case o.verb == flush:
		b.message(i, 0, msgDelSetElem, 0, o.set.Table.Family, o.set.encodeName)
	case o.verb == del:
		b.message(i, 0, msgDelSet, 0, o.set.Table.Family, func(a attrs) attrs {
			return a.str(setTable, o.set.Table.Name).str(setName, o.set.Name)
		})
	default:
		b.message(i, 0, msgNewSet, createFlags(o.verb), o.set.Table.Family, o.encodeSet)
	}
}

func pick(v verb, new, delete uint16) uint16 {
	if v == del {
		return delete
	}
	return new
}

func createFlags(v verb) uint16 {
	switch v {
	case add:
		return flagCreate
	case create:
		return flagCreate | flagExcl
	}
	return 0
}

func (o *txOp) encodeChain(a attrs) attrs {
	c := o.chain
	a = a.str(chainTable, c.Table.Name).str(chainName, c.Name)
	if c.Hook == 0 || o.verb == del {
		return a
	}
	a, at := a.begin(chainHook)
	a = a.u32(hookNum, uint32(c.Hook-1)).u32(hookPriority, uint32(c.Priority)).end(at)
	return a.str(chainType, c.Type)
}

func (o *txOp) encodeRule(a attrs) attrs {
	a = a.str(ruleTable, o.chain.Table.Name).str(ruleChain, o.chain.Name)
	a, at := a.begin(ruleExpressions)
	for _, p := range o.rule.Parts {
		for _, e := range p.ops {
			a = e.encode(a, listElem)
		}
	}
	return a.end(at).comment(ruleUserdata, o.rule.Comment)
}

func (e op) encode(a attrs, typ uint16) attrs {
	a, at := a.begin(typ)
	a = a.str(exprName, e.name)
	a, in := a.begin(exprData)
	return append(a, e.data...).end(in).end(at)
}

func (o *txOp) encodeSet(a attrs) attrs {
	s := o.set
	var flags uint32
	if s.isMap() {
		flags |= setFlagMap
	}
	if len(s.Key) > 1 {
		flags |= setFlagConcat
	}
	if s.Timeout > 0 {
		flags |= setFlagTime | setFlagEval
	}
	a = a.str(setTable, s.Table.Name).str(setName, s.Name).u32(setFlags, flags)
	a = a.u32(setKeyType, typeNumber(s.Key)).u32(setKeyLen, uint32(width(s.Key)))
	switch {
	case s.Verdicts:
		a = a.u32(setDataType, setVerdicts)
	case len(s.Data) > 0:
		a = a.u32(setDataType, typeNumber(s.Data)).u32(setDataLen, uint32(width(s.Data)))
	}
	a = a.u32(setID, uint32(o.setID)).bytes(setUserdata, s.byteOrders())
	if len(s.Key) > 1 {
		a = a.fields(s.Key)
	}
	if s.Timeout > 0 {
		a = a.u64(setTimeout, uint64(s.Timeout)*1000)
		var at int
		a, at = a.begin(setDesc)
		a = a.u32(setDescSize, maxDynamic).end(at)
	}
	if s.Counter {
		a = counterOp(Counter{}).encode(a, setExpr)
	}
	return a
}

// byteOrders is the user data by which nft knows the order of the bytes of keys
// and data that are not concatenations; without it nft prints a mark backwards.
func (s *Set) byteOrders() []byte {
	const keyOrder, dataOrder, host, network = 0, 1, 1, 2
	order := func(ts []Type) uint32 {
		if len(ts) == 1 && ts[0] == Mark {
			return host
		}
		return network
	}
	b := binary.NativeEndian.AppendUint32([]byte{keyOrder, 4}, order(s.Key))
	if len(s.Data) > 0 {
		b = binary.NativeEndian.AppendUint32(append(b, dataOrder, 4), order(s.Data))
	}
	return b
}

// fields appends the widths of the parts of a concatenation.
func (a attrs) fields(ts []Type) attrs {
	a, at := a.begin(setDesc)
	a, in := a.begin(setDescConcat)
	for _, t := range ts {
		var elem int
		a, elem = a.begin(listElem)
		a = a.u32(setFieldLen, uint32(t.size())).end(elem)
	}
	return a.end(in).end(at)
}

func counterOp(c Counter) op {
	return op{"counter", attrs(nil).u64(counterBytes, c.Bytes).u64(counterPackets, c.Packets)}
}

// typeNumber is nft's number of a concatenation: six bits for each part.
func typeNumber(ts []Type) uint32 {
	var n uint32
	for _, t := range ts {
		n = n<<6 | uint32(t)
	}
	return n
}

func (s *Set) encodeName(a attrs) attrs {
	return a.str(elemListTable, s.Table.Name).str(elemListSet, s.Name)
}

// elements appends as many messages as the elements need.
func (b *batch) elements(i int, o *txOp) {
	typ := pick(o.verb, msgNewSetElem, msgDelSetElem)
	for from := 0; from < len(o.elems); {
		to := fit(o.verb, o.elems, from)
		b.message(i, from, typ, createFlags(o.verb), o.set.Table.Family, func(a attrs) attrs {
			a, at := o.set.encodeName(a).begin(elemListElements)
			for e := from; e < to; e++ {
				a = o.elems[e].encode(a, o.set, o.verb == del)
			}
			return a.end(at)
		})
		from = to
	}
}

// fit gives the end of the longest run of elements that one message can hold.
func fit(v verb, es []Element, from int) int {
	n, to := 0, from
	for to < len(es) {
		n += elementSize(v, &es[to])
		if n > maxElements && to > from {
			break
		}
		to++
	}
	return to
}

func (e *Element) encode(a attrs, s *Set, keyOnly bool) attrs {
	a, at := a.begin(listElem)
	a = a.value(elemKey, e.Key)
	if keyOnly {
		return a.end(at)
	}
	if s.Verdicts {
		a = a.verdict(elemData, e.Verdict)
	} else if len(s.Data) > 0 {
		a = a.value(elemData, e.Data)
	}
	a = a.comment(elemUserdata, e.Comment)
	if e.Counter != nil {
		a = counterOp(*e.Counter).encode(a, elemExpr)
	}
	return a.end(at)
}
