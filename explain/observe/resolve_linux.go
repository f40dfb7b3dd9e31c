package observe

import (
	"context"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// Query is one question to a DNS server.
type Query struct {
	Server netip.AddrPort `json:"server"`
	Name   string         `json:"name"`
	// Service is the Service whose cluster IP Server is, or empty.
	Service string `json:"service,omitempty"`
	OK      bool   `json:"ok"` // it answered, whatever it said
	Error   string `json:"error,omitempty"`
}

// Do asks over UDP, twice.
func (q *Query) Do(ctx context.Context) {
	m := new(dns.Msg)
	m.SetQuestion(dns.Fqdn(q.Name), dns.TypeA)
	client := dns.Client{Timeout: 800 * time.Millisecond}
	for range 2 {
		if _, _, err := client.ExchangeContext(ctx, m, q.Server.String()); err != nil {
			q.Error = err.Error()
			continue
		}
		q.OK, q.Error = true, ""
		return
	}
}
