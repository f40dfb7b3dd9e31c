package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// GuardID names a family's table of package guard.
func GuardID(f nft.Family) string { return fmt.Sprintf("nft %s %s", f, guard.Name) }

// guardOf gives the rules of a node by which it takes packets of a family.
func guardOf(own *plan.Plan, v6 bool) guard.Rules {
	f := nft.FamilyOf(v6)
	for _, r := range own.Guard {
		if r.Family == f {
			return r
		}
	}
	return guard.Compile(own.OverlayInput(), own.Outside, f)
}

// guardedPort says that a packet is one of which those rules say something outside of
// VXLAN.
func (t *traveller) guardedPort(own *plan.Plan, p packet) bool {
	port := p.dst.Port()
	return t.protocol == cluster.UDP && !p.local && (port == own.Overlay.UDPPort() || port == overlay.ProbePort)
}

// keptOut ends a packet to a VTEP or the probes that the node does not take, or not
// send on.
func (t *traveller) keptOut(p packet, own *plan.Plan, toNode bool) bool {
	if !t.guardedPort(own, p) {
		return false
	}
	r := guardOf(own, p.dst.Addr().Is6())
	why := ""
	if toNode {
		why = r.ToNode(p.src, p.dst, p.by, p.translatedAt())
	} else {
		why = r.Forward(p.dst, p.by, p.translatedAt())
	}
	return t.dropped(p, r, why)
}

// unwrapped ends a packet that the node does not take out of VXLAN.
func (t *traveller) unwrapped(p packet, from, far *plan.Plan, outer netip.Addr) bool {
	if sends(from, p.src) {
		return false
	}
	r := guardOf(far, outer.Is6())
	p.at = far.Node
	return t.dropped(p, r, r.Tunnelled(outer, p.src))
}

// sends says that an address is one of the node or of its pods, which others take from
// it. Nearly all are.
func sends(own *plan.Plan, a netip.Addr) bool {
	n := own.Snapshot.Nodes.Get(cluster.Key{Name: own.Node})
	return n == nil || !a.IsValid() || slices.Contains(n.Addresses, a) || slices.ContainsFunc(n.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) })
}

func (t *traveller) dropped(p packet, r guard.Rules, why string) bool {
	if why == "" {
		return false
	}
	table := nft.Table{Family: r.Family, Name: guard.Name}
	p.hop(StageGuard, p.at, "dropped: "+why, Object{ID: GuardID(r.Family), Node: p.at,
		Text: fmt.Sprintf("nft table %s, the rules with the comment %q", table, why), Look: "nft list table " + table.String()})
	t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, Dropped, "the node's guard drops it: "+why)
	return true
}
