package dns

import (
	"net/netip"
	"slices"
)

// Stub is a zone that resolvers of its own are asked for.
type Stub struct {
	Zone      Name
	Upstreams []netip.AddrPort
}

// routes say who is asked for which names.
type routes struct {
	rest  []*upstream
	stubs []stubRoute // the longest zone first
}

type stubRoute struct {
	zone      Name
	upstreams []*upstream
}

// newRoutes makes routes. An upstream that was there before keeps what is known
// of it.
func newRoutes(prev *routes, rest []netip.AddrPort, stubs []Stub) *routes {
	known := map[netip.AddrPort]*upstream{}
	for _, u := range prev.all() {
		known[u.addr] = u
	}
	find := func(addrs []netip.AddrPort) []*upstream {
		var out []*upstream
		for _, a := range addrs {
			if known[a] == nil {
				known[a] = &upstream{addr: a}
			}
			out = append(out, known[a])
		}
		return out
	}
	r := &routes{rest: find(rest)}
	for _, s := range stubs {
		r.stubs = append(r.stubs, stubRoute{s.Zone, find(s.Upstreams)})
	}
	slices.SortStableFunc(r.stubs, func(a, b stubRoute) int { return len(b.zone) - len(a.zone) })
	return r
}

// of gives the upstreams for a name.
func (r *routes) of(n Name) []*upstream {
	for _, s := range r.stubs {
		if n.in(s.zone) {
			return s.upstreams
		}
	}
	return r.rest
}

// in says whether n is zone or below it.
func (n Name) in(zone Name) bool {
	at := len(n) - len(zone)
	return at >= 0 && n[at:] == zone && n.boundary(at)
}

// all gives every upstream once.
func (r *routes) all() []*upstream {
	if r == nil {
		return nil
	}
	out := slices.Clone(r.rest)
	for _, s := range r.stubs {
		for _, u := range s.upstreams {
			if !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	return out
}

// SetUpstreams replaces the upstreams that names are asked of that no stub zone
// has. What is in the cache stays.
func (f *Forwarder) SetUpstreams(addrs []netip.AddrPort) {
	f.routes.Store(newRoutes(f.routes.Load(), addrs, f.cfg.Stubs))
	select {
	case f.changed <- struct{}{}:
	default:
	}
}
