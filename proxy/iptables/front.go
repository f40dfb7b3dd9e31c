package iptables

import (
	"fmt"
	"net/netip"

	"github.com/podlane/podlane/proxy"
)

// front is one frontend under rendering.
type front struct {
	proxy.Frontend
	protocol string // "tcp", ...
	comment  string
}

func (f front) id() string {
	return fmt.Sprintf("%s . %s . %d", f.Addr.Addr(), f.protocol, f.Addr.Port())
}

func (f front) matchPort() string {
	return fmt.Sprintf("-p %s -m %s --dport %d", f.protocol, f.protocol, f.Addr.Port())
}

// matches are what finds the front's packets that nothing has translated, in the
// filter table: one for each prefix in which NodePorts answer.
func (r *renderer) matches(f front) []string {
	if f.Kind != proxy.NodePort {
		return []string{fmt.Sprintf("-d %s %s", f.Addr.Addr(), f.matchPort())}
	}
	var out []string
	for _, p := range r.table.NodePorts {
		if p.Addr().Is6() == r.v6 {
			out = append(out, fmt.Sprintf("-d %s -m addrtype --dst-type LOCAL %s", p, f.matchPort()))
		}
	}
	return out
}

// front renders one frontend: its chain and what leads there, and what happens to
// the clients that get no endpoint.
func (r *renderer) front(f front, p *proxy.Port) {
	w := p.Way(f.Frontend)
	if len(w.Backends) > 0 || w.Short {
		chain := chainOf("SVC", f.id())
		for _, sources := range sourcesOf(f) {
			to := fmt.Sprintf(`%s -m comment --comment "%s" -j %s`, f.matchPort(), f.comment, chain)
			if f.Kind == proxy.NodePort {
				r.nat.add(nodePorts, "%s", to)
			} else {
				r.nat.add(services, "%s-d %s %s", sources, f.Addr.Addr(), to)
			}
		}
		r.way(chain, f, p, w)
	}
	if len(w.Backends) == 0 {
		for _, sources := range sourcesOf(f) {
			for _, m := range r.matches(f) {
				r.refuse(sources+m, f.protocol, w.Empty)
			}
		}
	}
	if len(f.Sources) > 0 {
		for _, m := range r.matches(f) {
			r.filter.add(filter, "%s -j DROP", m) // those in a range are translated by now, or refused
		}
	}
}

// sourcesOf are the matches of the clients that may use a frontend.
func sourcesOf(f front) []string {
	if len(f.Sources) == 0 {
		return []string{""}
	}
	var out []string
	for _, s := range f.Sources {
		out = append(out, fmt.Sprintf("-s %s ", s))
	}
	return out
}

// refuse renders what clients without an endpoint meet: TCP gets a reset.
func (r *renderer) refuse(match, protocol string, verdict proxy.Verdict) {
	switch {
	case verdict == proxy.Drop:
		r.filter.add(filter, "%s -j DROP", match)
	case protocol == "tcp":
		r.filter.add(filter, "%s -j REJECT --reject-with tcp-reset", match)
	default:
		r.filter.add(filter, "%s -j REJECT", match)
	}
}

// way renders where the clients of a frontend go.
func (r *renderer) way(chain string, f front, p *proxy.Port, w proxy.Way) {
	if w.Short {
		inside := chainOf("IN", f.id())
		r.nat.add(inside, "-j MARK --set-xmark 0x0/0x1000")
		r.nat.add(inside, "-m addrtype --src-type LOCAL -j %s", mark)
		r.spread(inside, f, p, w.Inside)
		r.nat.add(chain, "-j %s", pods)
		r.nat.add(chain, "-m mark --mark %s -g %s", podBit, inside)
		r.nat.add(chain, "-m addrtype --src-type LOCAL -g %s", inside)
	}
	switch {
	case len(w.Backends) == 0:
		return
	case w.Masquerade == proxy.Everyone:
		r.nat.add(chain, "-j %s", mark)
	case w.Masquerade == proxy.Others:
		r.nat.add(chain, "-j %s", markOthers)
	}
	r.spread(chain, f, p, w.Backends)
}

// spread gives each endpoint its share of the connections.
func (r *renderer) spread(chain string, f front, p *proxy.Port, to []netip.AddrPort) {
	target := func(e netip.AddrPort) string { return fmt.Sprintf("-p %s -j DNAT --to-destination %s", f.protocol, e) }
	if p.Affinity > 0 {
		target = func(e netip.AddrPort) string { return "-j " + r.sticky(f, e) }
		for _, e := range to {
			name := r.sticky(f, e)
			r.nat.add(chain, "-m recent --name %s --rcheck --seconds %d --reap -j %s", name, p.Affinity, name)
		}
	}
	for i, e := range to {
		if left := len(to) - i; left > 1 {
			r.nat.add(chain, "-m statistic --mode random --probability %.10f %s", 1/float64(left), target(e))
		} else {
			r.nat.add(chain, "%s", target(e))
		}
	}
}

// sticky gives the chain that remembers a client for an endpoint of a Service's
// port, whichever frontend it came by.
func (r *renderer) sticky(f front, e netip.AddrPort) string {
	name := chainOf("SEP", f.comment+" "+f.protocol+" "+e.String())
	if _, ok := r.nat.rules[name]; !ok {
		r.nat.add(name, "-p %s -m recent --name %s --set -j DNAT --to-destination %s", f.protocol, name, e)
	}
	return name
}
