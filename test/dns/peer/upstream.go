package peer

import (
	"fmt"
	"hash/fnv"
	"net"
	"strings"

	"github.com/miekg/dns"
)

// OutsideTTL is that of the upstream's records.
const OutsideTTL = 900

// StartUpstream starts a resolver that knows an answer to everything: what a name
// has follows from its hash. It ends with this program.
func StartUpstream() (addr string, err error) {
	addr = FreeAddr()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) { _ = w.WriteMsg(outside(q)) })
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return "", err
	}
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		return "", err
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: h}, {PacketConn: c, Handler: h}} {
		go func() { _ = s.ActivateAndServe() }()
	}
	return addr, nil
}

func outside(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable, m.Compress = true, true
	if len(q.Question) != 1 {
		return m.SetRcode(q, dns.RcodeFormatError)
	}
	name := strings.ToLower(q.Question[0].Name)
	sum := fnv.New32()
	_, _ = sum.Write([]byte(name))
	soa, _ := dns.NewRR(fmt.Sprintf(". %d IN SOA ns. hostmaster. 1 2 3 4 %[1]d", OutsideTTL))
	switch h := sum.Sum32(); {
	case h%4 == 0 && !strings.HasPrefix(name, "name-") || strings.HasPrefix(name, "nx."):
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa}
	case q.Question[0].Qtype == dns.TypeA:
		for i := range 1 + h%3 {
			m.Answer = append(m.Answer, &dns.A{A: net.IPv4(192, 0, 2, byte(h)+byte(i)),
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: OutsideTTL}})
		}
	default:
		m.Ns = []dns.RR{soa}
	}
	return m
}
