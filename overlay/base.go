package overlay

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
)

// Base is what Compile makes of all but the node's own pods: it stays as it is while
// pods come and go, which in a large cluster is most of the work. It is never changed.
type Base struct {
	// Peers are the other nodes that are joined, by name.
	Peers    []Peer
	Problems []cluster.Problem
	// PodMTU is that of pods made now.
	PodMTU int

	state  link.State
	own    cidrs
	usable bool // the own node can have pods
}

// NewBase compiles an Input without its Pods.
func NewBase(in Input) *Base {
	in.Config = in.Config.withDefaults()
	if ps := in.Check(); ps != nil {
		return &Base{Problems: ps, PodMTU: podMTU(in, nil), state: link.NewState()}
	}
	m := survey(in)
	peers := m.list()
	c := compiler{Input: in, own: m.own, state: link.NewState(), problems: m.problems}
	c.unreachable()
	c.forwarding()
	if in.Config.Mode != Direct {
		c.vtep()
	}
	for _, peer := range m.peers {
		c.peer(peer)
	}
	return &Base{Peers: peers, Problems: c.problems, PodMTU: podMTU(in, peers), state: c.state, own: m.own, usable: true}
}

// With gives the own node's wanted state with these pods of its own.
func (b *Base) With(pods []Pod) link.State {
	if !b.usable || len(pods) == 0 {
		return b.state
	}
	p := podCompiler{b, link.State{
		Links: maps.Clone(b.state.Links), Addrs: maps.Clone(b.state.Addrs), Routes: maps.Clone(b.state.Routes),
		Neighs: maps.Clone(b.state.Neighs), FDB: b.state.FDB, Sysctls: maps.Clone(b.state.Sysctls),
	}}
	byLink := func(a, b Pod) int { return cmp.Compare(a.Link, b.Link) }
	for _, pod := range slices.SortedFunc(slices.Values(pods), byLink) {
		p.pod(pod)
	}
	return p.state
}

// podCompiler adds pods to a Base's state.
type podCompiler struct {
	*Base
	state link.State
}

// pod is the node's side of a pod's pair.
func (c *podCompiler) pod(p Pod) {
	p.MTU = cmp.Or(p.MTU, c.PodMTU)
	maps.Copy(c.state.Links, PodLinks(p))
	linkSysctls(c.state, c.own, p.Link)
	for _, a := range p.Addrs {
		if g := gatewayOf(p, c.own.pods, a.Is6()); g.IsValid() {
			c.state.Addrs[link.Addr{Dev: p.Link, Prefix: single(g)}] = struct{}{}
		}
		c.state.Neighs[link.NeighKey{Dev: p.Link, Addr: a}] = p.MAC
		c.state.Routes[link.RouteKey{Dst: netip.PrefixFrom(a, a.BitLen())}] = link.Route{Dev: p.Link}
	}
}
