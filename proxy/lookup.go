package proxy

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Verdict is what happens to a new connection.
type Verdict string

// The verdicts.
const (
	Pass    Verdict = "pass"    // no frontend: the packet goes on as it is
	Balance Verdict = "balance" // to one of the backends, evenly
	Reject  Verdict = "reject"  // refused at once: the Service has no endpoint
)

// Result is what a new connection to one address must meet.
type Result struct {
	Verdict  Verdict
	Service  cluster.Key
	Port     string // the Service port's name
	Backends []netip.AddrPort
	// Shadowed are other Services that claim the same frontend. The first by name
	// has it.
	Shadowed []cluster.Key
}

// Lookup says what a new connection to dst meets. It is the reference that the
// kernel is compared with; it walks the whole Table.
func (t *Table) Lookup(proto cluster.Protocol, dst netip.AddrPort) Result {
	r := Result{Verdict: Pass}
	for _, k := range t.Services.Keys() {
		p := t.Services.Get(k).port(proto, dst)
		switch {
		case p == nil:
		case r.Verdict != Pass:
			r.Shadowed = append(r.Shadowed, k)
		default:
			r.Verdict, r.Service, r.Port = Balance, k, p.Name
			r.Backends = p.Backends(dst.Addr().Is6())
			if len(r.Backends) == 0 {
				r.Verdict = Reject
			}
		}
	}
	return r
}

func (e *Entry) port(proto cluster.Protocol, dst netip.AddrPort) *Port {
	for i := range e.Ports {
		if p := &e.Ports[i]; p.Protocol == proto && slices.Contains(p.Frontends, dst) {
			return p
		}
	}
	return nil
}
