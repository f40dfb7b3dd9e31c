package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// String gives the transaction as nft commands, one a line, which nft -f takes.
func (tx *Tx) String() string {
	var b strings.Builder
	for i := range tx.ops {
		b.WriteString(tx.ops[i].text())
		b.WriteByte('\n')
	}
	return b.String()
}

func (o *txOp) text() string {
	v := verbNames[o.verb]
	switch {
	case o.table != nil && o.owned:
		return fmt.Sprintf("%s table %s { flags owner; }", v, o.table)
	case o.table != nil:
		return fmt.Sprintf("%s table %s", v, o.table)
	case o.rule != nil:
		return fmt.Sprintf("%s rule %s %s", v, o.chain, o.rule)
	case o.chain != nil:
		return fmt.Sprintf("%s chain %s%s", v, o.chain, o.chainText())
	case o.elems != nil:
		return fmt.Sprintf("%s element %s { %s }", v, o.set, o.elementsText())
	}
	return fmt.Sprintf("%s %s %s%s", v, kindOf(*o.set), o.set, o.setText())
}

// name says what the operation is about, for errors.
func (o *txOp) name() string {
	v := verbNames[o.verb]
	switch {
	case o.table != nil:
		return fmt.Sprintf("%s table %s", v, o.table)
	case o.rule != nil:
		return fmt.Sprintf("%s rule %s %s", v, o.chain, o.rule)
	case o.chain != nil:
		return fmt.Sprintf("%s chain %s", v, o.chain)
	case o.elems != nil:
		return fmt.Sprintf("%s %d elements of %s", v, len(o.elems), o.set)
	}
	return fmt.Sprintf("%s %s %s", v, kindOf(*o.set), o.set)
}

func kindOf(s Set) string {
	if s.isMap() {
		return "map"
	}
	return "set"
}

func (o *txOp) chainText() string {
	c := o.chain
	if c.Hook == 0 || o.verb == del || o.verb == flush {
		return ""
	}
	return fmt.Sprintf(" { type %s hook %s priority %d; policy accept; }", c.Type, c.Hook, c.Priority)
}

func (o *txOp) setText() string {
	if o.verb == flush || o.verb == del {
		return ""
	}
	text := " { type " + joinTypes(o.set.Key)
	if o.set.Verdicts {
		text += " : verdict"
	} else if len(o.set.Data) > 0 {
		text += " : " + joinTypes(o.set.Data)
	}
	if o.set.Counter {
		text += "; counter"
	}
	if o.set.Timeout > 0 {
		text += fmt.Sprintf("; size %d; flags dynamic,timeout; timeout %ds", maxDynamic, o.set.Timeout)
	}
	return text + "; }"
}

func joinTypes(ts []Type) string {
	names := make([]string, len(ts))
	for i, t := range ts {
		names[i] = t.String()
	}
	return strings.Join(names, " . ")
}

func (o *txOp) elementsText() string {
	parts := make([]string, len(o.elems))
	for i := range o.elems {
		parts[i] = o.set.ElementText(o.elems[i], o.verb == del)
	}
	return strings.Join(parts, ", ")
}

// ElementText gives an element of the set in nft's words, or its key alone.
func (s Set) ElementText(e Element, keyOnly bool) string {
	text := concatText(s.Key, e.Key)
	if keyOnly {
		return text
	}
	if e.Counter != nil {
		text += fmt.Sprintf(" counter packets %d bytes %d", e.Counter.Packets, e.Counter.Bytes)
	}
	if e.Comment != "" {
		text += fmt.Sprintf(" comment %q", e.Comment)
	}
	if s.Verdicts {
		text += " : " + e.Verdict.String()
	} else if len(s.Data) > 0 {
		text += " : " + concatText(s.Data, e.Data)
	}
	return text
}

func concatText(ts []Type, b []byte) string {
	words := make([]string, 0, len(ts))
	for _, t := range ts {
		if len(b) < t.size() {
			return strings.Join(append(words, "?"), " . ")
		}
		words = append(words, t.text(b[:t.size()]))
		b = b[min(align(t.size()), len(b)):]
	}
	return strings.Join(words, " . ")
}

var protoNames = map[byte]string{6: "tcp", 17: "udp", 132: "sctp"}

func (t Type) text(b []byte) string {
	switch t {
	case IPv4Addr, IPv6Addr:
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case InetProto:
		if name := protoNames[b[0]]; name != "" {
			return name
		}
		return strconv.Itoa(int(b[0]))
	case InetService:
		return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
	}
	return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b))
}
