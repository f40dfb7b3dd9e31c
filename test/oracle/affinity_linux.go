package oracle

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/world"
)

// loyal is a client of a port with affinity, over several looks.
type loyal struct {
	source  netip.Addr
	service cluster.Key
	port    string
	seconds int32
	// been are its endpoints so far in each node, the last one last: where endpoints
	// came back in between, it may go to any of these.
	been [2][]netip.AddrPort
}

const returns = 3 // how often a client comes back at one look

// affinity compares what clients meet that come back. Where they went first is by
// chance, so each node is held to the rules by itself.
func (s *sides) affinity(gs []*group, c *Coverage) ([]mismatch, error) {
	kept := map[string]*loyal{}
	var found []mismatch
	for _, g := range gs {
		if !g.client.fresh || len(g.backends) == 0 {
			continue
		}
		l := s.loyals[g.String()]
		switch {
		case g.affinity:
			l = s.renewed(l, g)
			kept[g.String()] = l
			wrong, err := s.comeBack(g, l, s.otherWay(gs, g), c)
			if err != nil {
				return nil, err
			}
			found = append(found, wrong...)
		case l != nil && len(g.backends) > 1:
			wrong, err := s.released(g, l, c)
			if err != nil {
				return nil, err
			}
			found = append(found, wrong...)
		}
	}
	s.loyals = kept
	return found, nil
}

// renewed gives the client of the group: another one, where the port is no longer
// the one that it came to.
func (s *sides) renewed(l *loyal, g *group) *loyal {
	source := g.client.source(s.r, g)
	if l != nil {
		source = l.source
	}
	res := s.ours.table.Lookup(g.query(source))
	seconds := *s.ours.state.Services[res.Service.Name].Spec.SessionAffinityConfig.ClientIP.TimeoutSeconds
	if l != nil && l.service == res.Service && l.port == res.Port && l.seconds == seconds {
		return l
	}
	return &loyal{source: g.client.source(s.r, g), service: res.Service, port: res.Port, seconds: seconds}
}

// otherWay gives another frontend of the same port, with the same endpoints.
func (s *sides) otherWay(gs []*group, g *group) *group {
	own := s.ours.table.Lookup(g.query(g.to.Addr()))
	for _, o := range gs {
		if o != g && o.client == g.client && o.v6() == g.v6() && o.affinity && slices.Equal(o.backends, g.backends) {
			if other := s.ours.table.Lookup(o.query(g.to.Addr())); other.Service == own.Service && other.Port == own.Port {
				return o
			}
		}
	}
	return nil
}

// visit makes connections of one client, and gives the endpoints.
func (s *sides) visit(source netip.Addr, gs ...*group) ([2][]netip.AddrPort, error) {
	v := volley{}
	for _, g := range gs {
		v.add(g, source)
	}
	var to [2][]netip.AddrPort
	out, err := s.fire(v)
	for side := range out {
		for i, o := range out[side] {
			if m := meetingOf(v.shots[i], o); m.what != "endpoint" && !slices.Contains(gs[i].backends, o.Dst) {
				o = world.Outcome{}
			}
			to[side] = append(to[side], o.Dst)
		}
	}
	return to, err
}

func (s *sides) comeBack(g *group, l *loyal, other *group, c *Coverage) ([]mismatch, error) {
	ways := slices.Repeat([]*group{g}, returns)
	if other != nil {
		ways = append(ways, other)
	}
	to, err := s.visit(l.source, ways...)
	if err != nil {
		return nil, err
	}
	var found []mismatch
	wrong := func(side int, format string, args ...any) {
		name := []string{"kube-proxy", "Podlane"}[side]
		found = append(found, mismatch{Group: g.String(), Why: fmt.Sprintf("%s: the client %s ", name, l.source) + fmt.Sprintf(format, args...)})
	}
	c.Sticky["1.6 a client comes back to its endpoint"]++
	if other != nil {
		c.Sticky["1.6 whichever frontend it takes"]++
	}
	for side := range to {
		first := to[side][0]
		if slices.ContainsFunc(to[side], func(a netip.AddrPort) bool { return a != first }) {
			wrong(side, "comes to %v, the last one by %v", to[side], ways[len(ways)-1])
		}
		l.visited(side, first, g.backends, s.disturbed, c, wrong)
	}
	return found, nil
}

// visited takes down the endpoint that the client has now.
func (l *loyal) visited(side int, now netip.AddrPort, backends []netip.AddrPort, disturbed bool, c *Coverage, wrong func(int, string, ...any)) {
	been := l.been[side]
	l.been[side] = append(slices.DeleteFunc(slices.Clone(been), func(a netip.AddrPort) bool { return a == now }), now)
	still := slices.DeleteFunc(slices.Clone(been), func(a netip.AddrPort) bool { return !slices.Contains(backends, a) })
	switch {
	case len(been) == 0 || disturbed:
	case !slices.Contains(backends, been[len(been)-1]):
		c.Sticky["1.6 until the endpoint goes"]++
	case !slices.Contains(still, now):
		wrong(side, "came to %v and comes to %s now", been, now)
	default:
		c.Sticky["1.6 after a change of something else"]++
	}
}

// released is a look at a client of a port that has affinity no longer.
func (s *sides) released(g *group, l *loyal, c *Coverage) ([]mismatch, error) {
	to, err := s.visit(l.source, slices.Repeat([]*group{g}, 10*len(g.backends))...)
	if err != nil {
		return nil, err
	}
	c.Sticky["1.6 until affinity goes"]++
	var found []mismatch
	for side := range to {
		slices.SortFunc(to[side], netip.AddrPort.Compare)
		if n := len(slices.Compact(to[side])); n < 2 {
			found = append(found, mismatch{Group: g.String(), Why: fmt.Sprintf("%s: the client %s still has one endpoint", []string{"kube-proxy", "Podlane"}[side], l.source)})
		}
	}
	return found, nil
}

// disturbs says that a step has more than one moment at which the nodes are
// synced: what was between need not be as before.
func disturbs(step history.Step) bool {
	return len(step) > 1 && slices.ContainsFunc(step, func(c history.Change) bool { return c.Restart })
}
