package dns

import (
	"errors"
	"fmt"
	"strings"
)

// maxName is the most bytes a name has in wire form (RFC 1035, section 2.3.4).
const maxName = 255

// Name is a domain name in wire form without compression, in lower case:
// "\x03svc\x07cluster\x05local\x00". Its parts are substrings, so walking one
// allocates nothing, and a dot or any other byte inside a label is no special
// case.
type Name string

// Root is the name of the root.
const Root Name = "\x00"

var errName = errors.New("not a legal domain name")

// ParseName reads the text form of a name ("cluster.local", with or without the
// last dot, \. and \DDD as in RFC 1035, section 5.1).
func ParseName(text string) (Name, error) {
	n, label := "", []byte{}
	rest := strings.TrimSuffix(text, ".")
	if strings.HasSuffix(text, `\.`) {
		rest = text
	}
	for rest != "" {
		c, dot, next, err := unescape(rest)
		if err != nil {
			return "", fmt.Errorf("%q: %w", text, err)
		}
		rest = next
		if !dot {
			label = append(label, c)
		}
		if dot || rest == "" {
			if len(label) == 0 || len(label) > 63 {
				return "", fmt.Errorf("%q: %w: a label has 1 to 63 bytes", text, errName)
			}
			n += string(byte(len(label))) + string(label)
			label = label[:0]
		}
	}
	if len(n) >= maxName {
		return "", fmt.Errorf("%q: %w: longer than %d bytes", text, errName, maxName)
	}
	return Name(n + "\x00"), nil
}

// unescape takes one byte, lower case, or one label end from the text.
func unescape(s string) (c byte, dot bool, rest string, err error) {
	if s[0] == '.' {
		return 0, true, s[1:], trailing(s[1:])
	}
	if s[0] != '\\' {
		return lower(s[0]), false, s[1:], nil
	}
	if len(s) >= 4 && isDigit(s[1]) && isDigit(s[2]) && isDigit(s[3]) {
		v := int(s[1]-'0')*100 + int(s[2]-'0')*10 + int(s[3]-'0')
		if v > 255 {
			return 0, false, "", errName
		}
		return lower(byte(v)), false, s[4:], nil
	}
	if len(s) < 2 {
		return 0, false, "", errName
	}
	return lower(s[1]), false, s[2:], nil
}

func trailing(rest string) error {
	if rest == "" {
		return errName // "a..": the one last dot is gone already
	}
	return nil
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// String gives the text form with the last dot.
func (n Name) String() string {
	if n == Root || n == "" {
		return "."
	}
	var b strings.Builder
	for n != Root && n != "" {
		label, rest := n.cut()
		for i := range len(label) {
			writeByte(&b, label[i])
		}
		b.WriteByte('.')
		n = rest
	}
	return b.String()
}

func writeByte(b *strings.Builder, c byte) {
	switch {
	case c == '.' || c == '\\' || c == '"' || c == ';' || c == '(' || c == ')' || c == '@' || c == '$':
		b.WriteByte('\\')
		b.WriteByte(c)
	case c <= ' ' || c > '~':
		fmt.Fprintf(b, "\\%03d", c)
	default:
		b.WriteByte(c)
	}
}

// cut gives the first label and what is right of it. The root and a broken name
// give an empty label.
func (n Name) cut() (label string, rest Name) {
	if len(n) == 0 || n[0] == 0 || int(n[0]) >= len(n) {
		return "", ""
	}
	end := 1 + int(n[0])
	return string(n[1:end]), n[end:]
}

// maxDepth is the number of labels left of the zone that mean anything:
// _port._proto.service.namespace.svc.
const maxDepth = 5

// path is the labels of a name left of the zone, from the zone outwards: for
// "web.shop.svc.cluster.local" it is svc, shop, web.
type path struct {
	labels [maxDepth]string
	n      int // may be more than maxDepth: such a name does not exist
}

// below splits n into the labels left of zone; false: n is not in the zone.
func (n Name) below(zone Name) (p path, in bool) {
	var left [maxDepth]string
	for len(n) > len(zone) {
		label, rest := n.cut()
		if rest == "" {
			return path{}, false
		}
		if p.n < maxDepth {
			left[p.n] = label
		}
		p.n++
		n = rest
	}
	if n != zone {
		return path{}, false
	}
	for i := range min(p.n, maxDepth) {
		p.labels[min(p.n, maxDepth)-1-i] = left[i]
	}
	return p, true
}

// child puts labels in front of n, the first of them outermost. The empty Name
// is the answer where the result would be no legal name, or n is not: such a
// record cannot be sent.
func (n Name) child(labels ...string) Name {
	if n == "" {
		return ""
	}
	size := len(n)
	for _, l := range labels {
		if l == "" || len(l) > 63 {
			return ""
		}
		size += 1 + len(l)
	}
	if size > maxName {
		return ""
	}
	b := make([]byte, 0, size)
	for _, l := range labels {
		b = append(b, byte(len(l)))
		for i := range len(l) {
			b = append(b, lower(l[i]))
		}
	}
	return Name(append(b, n...))
}
