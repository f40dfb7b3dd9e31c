package guard

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// What follows is the reference of what UDP packets meet in these tables. by is the
// link by which one has come to the node; "" is the underlay's. The answer is why it
// is dropped; "" where it is not.

func fromPod(by string) bool { return strings.HasPrefix(by, link.Prefix) && by != overlay.Device }

// ToNode is for a packet to an address of the node itself.
func (r Rules) ToNode(src netip.Addr, port uint16, by string) string {
	switch {
	case port == r.Port && port != 0 && (fromPod(by) || by == overlay.Device), port == r.Probe && fromPod(by):
		return FromPod
	case port == r.Port && port != 0 && !contains(r.Nodes, src):
		return Stranger
	case port == r.Probe && !contains(r.Nodes, src) && !contains(r.Gateways, src):
		return Stranger
	}
	return ""
}

// Forward is for a packet that the node sends on; translated says that it is one to a
// Service.
func (r Rules) Forward(dst netip.AddrPort, by string, translated bool) string {
	probe := dst.Port() == r.Probe && (contains(r.Nodes, dst.Addr()) || contains(r.Gateways, dst.Addr()))
	vtep := dst.Port() == r.Port && r.Port != 0 && contains(r.Nodes, dst.Addr())
	if (probe || vtep) && (translated || fromPod(by) || by == overlay.Device) {
		return Forwarded
	}
	return ""
}

// Tunnelled is for a packet in VXLAN to the node, from a node's address outer, with the
// source inner inside.
func (r Rules) Tunnelled(outer, inner netip.Addr) string {
	switch {
	case !contains(r.Nodes, outer):
		return Stranger
	case slices.ContainsFunc(r.Pairs, func(p Pair) bool { return p.Node == outer && p.Inner.Contains(inner) }),
		slices.ContainsFunc(r.Outside, func(p netip.Prefix) bool { return p.Contains(inner) }):
		return ""
	}
	return Inner
}

func contains(sorted []netip.Addr, a netip.Addr) bool {
	_, is := slices.BinarySearchFunc(sorted, a, netip.Addr.Compare)
	return is
}
