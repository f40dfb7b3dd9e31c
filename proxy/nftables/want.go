package nftables

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// want is what a front should be.
type want struct {
	to goal
	// sources, where there are source ranges, is the chain that checks them; inside
	// the goal of clients on this node, where it is another one.
	sources, inside *goal
	// slots are the endpoints, local those that only the endpoints of this node are.
	slots, local []netip.AddrPort
	count        bool // of each endpoint
	comment      string
}

// goals are all goals of the front.
func (w *want) goals() []goal {
	gs := []goal{w.to}
	for _, g := range []*goal{w.sources, w.inside} {
		if g != nil {
			gs = append(gs, *g)
		}
	}
	return gs
}

// wantOf is what a port wants of one of its frontends.
func wantOf(service cluster.Key, p *proxy.Port, f proxy.Frontend) want {
	way := p.Way(f)
	owner := ownerOf(service, p)
	w := want{count: p.Count}
	var bits number
	if f.Kind == proxy.NodePort {
		bits = nodePort
	}
	switch {
	case len(way.Backends) == 0 && !way.Short:
		w.to = goal{number: refused}
		if way.Empty == proxy.Drop {
			w.to = goal{number: dropped}
		}
	case p.Affinity > 0:
		w.stick(way, sticky{owner: owner + " " + strings.ToLower(p.Protocol.String()), seconds: p.Affinity, count: p.Count})
	case way.Short:
		w.slots, w.local = inOrder(way.Inside), inOrder(way.Backends)
		w.to = goal{number: bits | local | number(len(w.local))}
		w.inside = &goal{number: bits | forInside | number(len(w.slots))}
	default:
		w.slots = inOrder(way.Backends)
		w.to = goal{number: bits | masqueradeBits(way) | number(len(w.slots))}
	}
	if len(f.Sources) > 0 {
		g := rangesGoal(f.Sources)
		w.sources = &g
	}
	w.describe(owner)
	return w
}

func ownerOf(service cluster.Key, p *proxy.Port) string {
	if p.Name == "" {
		return service.String()
	}
	return service.String() + ":" + p.Name
}

func masqueradeBits(w proxy.Way) number {
	if w.Masquerade == proxy.Everyone {
		return everyone
	}
	return 0
}

// stick makes the goals of a port with affinity.
func (w *want) stick(way proxy.Way, s sticky) {
	s.backends, s.head = inOrder(way.Backends), masqueradeBits(way)
	if way.Short {
		in := s
		in.backends, in.head = inOrder(way.Inside), forInside
		g := stickyGoal(in)
		w.inside = &g
		s.head, s.inside = local, g.name
	}
	w.to = stickyGoal(s)
}

// describe sets the comment: it tells the owner of a frontend and, by a hash, all
// that is written for it, so that a start can tell what is as wanted. "+" in place
// of "#" says that endpoints are counted.
func (w *want) describe(owner string) {
	h := newHash()
	for _, g := range w.goals() {
		h = h.text(g.String())
	}
	h = h.addrPorts(w.slots).addrPorts(w.local)
	tail := " #" + h.String()
	if w.count {
		tail = " +" + h.String()
	}
	w.comment = owner[:min(len(owner), nft.MaxComment-len(tail))] + tail
}

// Counted says by the comment of a frontend's element that its endpoints have
// counters.
func Counted(comment string) bool { return strings.Contains(comment, " +") }

// inOrder gives backends sorted and without duplicates. A proxy.Table has them so;
// where one had not, the slots would be fewer than the number that is written, and
// connections lost, so it is not taken on trust.
func inOrder(backends []netip.AddrPort) []netip.AddrPort {
	for i := 1; i < len(backends); i++ {
		if compareAddrPort(backends[i-1], backends[i]) >= 0 {
			sorted := slices.SortedFunc(slices.Values(backends), compareAddrPort)
			return slices.Compact(sorted)
		}
	}
	return backends
}
