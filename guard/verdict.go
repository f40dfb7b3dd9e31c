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

// ToNode is for a packet to an address of the node itself; translated says that it was
// one to a Service.
func (r Rules) ToNode(src netip.Addr, dst netip.AddrPort, by string, translated bool) string {
	vtep, probe := dst.Port() == r.Port && r.Port != 0, dst.Port() == r.Probe
	switch {
	case !vtep && !probe:
		return ""
	case fromPod(by) || vtep && by == overlay.Device:
		return FromPod
	case translated:
		return Forwarded
	case vtep && !contains(r.Own, dst.Addr()), probe && !contains(r.Asked, dst.Addr()):
		return Astray
	case !contains(r.Nodes, src) && !(probe && contains(r.Gateways, src)):
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
