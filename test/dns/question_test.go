package dns

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/podlane/podlane/test/dns/peer"
)

// ask is one question.
type ask struct {
	name string
	typ  uint16
	wire []byte
	tcp  bool
	// broken says what was done to the message, "" is nothing.
	broken string
	class  uint16
	rd     bool
	kinds  map[string]string // see peer.Objects
	kind   string            // of the Service that the name is below, "" is none
	all    bool              // endpoints of all Services have names
}

// path is the labels of the name below the zone, from the zone outwards; nil where
// it is not below it.
func (q ask) path() []string {
	rest, in := strings.CutSuffix("."+strings.ToLower(q.name), ".cluster.local.")
	if !in {
		return nil
	}
	l := dns.SplitDomainName(strings.TrimPrefix(rest, "."))
	slices.Reverse(l)
	return l
}

// reparse takes name, type and class from the message, after it was changed.
func (q *ask) reparse(kinds map[string]string) {
	m := new(dns.Msg)
	_ = m.Unpack(q.wire) // as far as it goes
	q.kinds, q.rd = kinds, m.RecursionDesired
	if len(m.Question) > 0 {
		q.name, q.typ, q.class = m.Question[0].Name, m.Question[0].Qtype, m.Question[0].Qclass
	}
	if p := q.path(); len(p) > 2 {
		q.kind = kinds[p[2]+"."+p[1]]
	}
}

func (q ask) String() string {
	return fmt.Sprintf("%s %s tcp=%t %s", q.name, dns.Type(q.typ), q.tcp, q.broken)
}

// send gives what a server says.
func (q ask) send(addr string) reply {
	for range 3 { // a datagram can be lost, also on loopback; silence is silence three times
		if r := q.once(addr); !r.silent {
			return r
		}
	}
	return reply{silent: true}
}

func (q ask) once(addr string) reply {
	network := "udp"
	if q.tcp {
		network = "tcp"
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		return reply{silent: true}
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(700 * time.Millisecond))
	out := q.wire
	if q.tcp {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)
	}
	if _, err := c.Write(out); err != nil {
		return reply{silent: true}
	}
	buf := make([]byte, 65535)
	if q.tcp {
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return reply{silent: true}
		}
		n := int(binary.BigEndian.Uint16(buf))
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return reply{silent: true}
		}
		return read(buf[:n])
	}
	n, err := c.Read(buf)
	if err != nil {
		return reply{silent: true}
	}
	return read(buf[:n])
}

var types = []uint16{dns.TypeA, dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeAAAA, dns.TypeSRV, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeTXT,
	dns.TypeMX, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeHTTPS, dns.TypeNAPTR, dns.TypeAXFR, 4711}

type generator struct {
	*rand.Rand
	*peer.Objects
	all bool
}

func pick[T any](g *generator, l []T) T { return l[g.IntN(len(l))] }

// generate gives n questions: most of them for names that are there or nearly so.
func generate(r *rand.Rand, o *peer.Objects, all bool, n int) []ask {
	g := &generator{r, o, all}
	var out []ask
	for len(out) < n {
		q := ask{all: g.all, name: g.name(), typ: pick(g, types), tcp: g.IntN(10) == 0}
		if strings.HasSuffix(q.name, "arpa.") && g.IntN(4) > 0 {
			q.typ = dns.TypePTR
		}
		if strings.HasPrefix(q.name, "_") && g.IntN(2) > 0 {
			q.typ = dns.TypeSRV
		}
		if g.IntN(3) == 0 {
			q.name = g.cases(q.name)
		}
		if g.pack(&q) {
			out = append(out, q)
		}
	}
	return out
}

func (g *generator) name() string {
	switch g.IntN(12) {
	case 0:
		return g.reverse()
	case 1:
		return pick(g, []string{"www.example.com.", "a.b.c.", "nx.example.com.", ".", "com.", "cluster.local.example.com.", "xcluster.local.", "local."})
	}
	return strings.ToLower(g.local() + ".cluster.local.")
}

// local is a name below the zone: a good one, then perhaps with labels changed.
func (g *generator) local() string {
	labels := g.good()
	for g.IntN(4) == 0 {
		i := g.IntN(len(labels))
		switch g.IntN(3) {
		case 0:
			labels[i] = g.label()
		case 1:
			labels = slices.Insert(labels, i, g.label())
		case 2:
			if len(labels) > 1 {
				labels = slices.Delete(labels, i, i+1)
			}
		}
	}
	return strings.Join(labels, ".")
}

func (g *generator) good() []string {
	svc, ns, _ := strings.Cut(pick(g, g.Services), ".")
	switch g.IntN(12) {
	case 0, 1, 2, 3:
		return []string{svc, ns, "svc"}
	case 4, 5:
		return []string{pick(g, []string{"_http", "_dns", "_metrics", "_"}), pick(g, []string{"_tcp", "_udp", "_sctp"}), svc, ns, "svc"}
	case 6, 7:
		return []string{pick(g, append(g.Hosts, g.dashed())), svc, ns, "svc"}
	case 8, 9:
		return []string{g.dashed(), ns, "pod"}
	case 10:
		return []string{ns, pick(g, []string{"svc", "pod"})}
	}
	return strings.Split(pick(g, []string{"svc", "pod", "dns-version", "ns.dns", "dns", "x.dns-version"}), ".")
}

func (g *generator) label() string {
	return pick(g, []string{"*", "any", "svc", "pod", "dns", "_tcp", "_http", "http", "tcp", "_zone", "pin", "ns0", "svc0", "web-0", "xn--bcher-kva", "default",
		"kubernetes", "a-b-c-d", "1-2-3-4", "256-1-1-1", "1-2-3", "--1", "fd00--1", strings.Repeat("l", 63), "a\\.b", "\\000", "_", "-"})
}

func (g *generator) dashed() string {
	if g.IntN(4) == 0 {
		return pick(g, []string{"1-2-3-4", "256-0-0-1", "01-2-3-4", "fd00--", "--1", "--ffff-1-2-3-4", "1-2-3", "fd00-1-2-3-4-5-6-7"})
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(pick(g, g.Addrs))
}

func (g *generator) reverse() string {
	a, err := netip.ParseAddr(pick(g, g.Addrs))
	if err != nil {
		a = netip.MustParseAddr("10.96.0.1")
	}
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		return "1.0.96.10.in-addr.arpa."
	}
	switch g.IntN(6) {
	case 0:
		return "x." + name
	case 1:
		_, rest, _ := strings.Cut(name, ".")
		return rest
	case 2:
		return pick(g, []string{"in-addr.arpa.", "ip6.arpa.", "256.0.96.10.in-addr.arpa.", "01.0.96.10.in-addr.arpa.", "1.2.ip6.arpa.", "arpa."})
	}
	return name
}

// cases changes the case of some letters (0x20).
func (g *generator) cases(s string) string {
	b := []byte(s)
	for i, c := range b {
		if g.IntN(2) == 0 && c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// pack makes the message, and breaks some. It is false for a name that cannot be
// sent.
func (g *generator) pack(q *ask) bool {
	m := new(dns.Msg).SetQuestion(q.name, q.typ)
	m.RecursionDesired = g.IntN(20) > 0
	m.CheckingDisabled = g.IntN(20) == 0
	if g.IntN(2) == 0 {
		m.SetEdns0(pick(g, []uint16{0, 512, 1232, 4096, 65535}), g.IntN(3) == 0)
	}
	if g.IntN(40) == 0 {
		m.Question[0].Qclass = pick(g, []uint16{dns.ClassCHAOS, dns.ClassANY, dns.ClassNONE, 77})
	}
	var err error
	if q.wire, err = m.Pack(); err != nil {
		return false
	}
	if q.broken == "" && g.IntN(10) == 0 {
		g.spoil(q)
	}
	q.reparse(g.Kinds)
	return true
}

// spoil breaks a message.
func (g *generator) spoil(q *ask) {
	b := q.wire
	switch g.IntN(6) {
	case 0:
		q.wire, q.broken = b[:g.IntN(len(b))], "cut"
	case 1:
		i := 2 + g.IntN(len(b)-2)
		b[i] ^= 1 << g.IntN(8)
		q.broken = fmt.Sprintf("bit of byte %d", i)
	case 2:
		b[5], q.broken = byte(g.IntN(4)), "number of questions"
	case 3:
		b[2], q.broken = b[2]|byte(1+g.IntN(15))<<3, "opcode"
	case 4:
		q.wire, q.broken = append(b, make([]byte, 1+g.IntN(20))...), "more bytes"
	case 5:
		b[7+2*g.IntN(3)]++
		q.broken = "number of records"
	}
}
