// Package link is the links, addresses, routes, neighbours, FDB entries and
// sysctls of one network namespace: the wanted State as plain data, Diff between
// two States, and (in the _linux files alone) Apply and Read over netlink.
//
// It decides nothing: what a node should have is compiled by overlay.
package link

import (
	"fmt"
	"net/netip"
)

// Protocol is the route protocol number (rtm_protocol) that marks our routes,
// and the neighbour protocol (NDA_PROTOCOL) that marks our neighbours and FDB
// entries.
const Protocol = 112

// Prefix begins the names of all links that are ours.
const Prefix = "pl"

// Group is the link group that marks our links. A link is ours when it has both
// the name and the group, so that a foreign link that happens to be named "plip0"
// is not.
const Group = 112

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// State is all that is ours in one network namespace, or should be. Every field
// is a map from what identifies a kernel object to the rest of it, so that Diff
// is the same short function for each.
type State struct {
	Links  map[string]Link // by name
	Addrs  map[Addr]struct{}
	Routes map[RouteKey]Route
	Neighs map[NeighKey]MAC
	FDB    map[FDBKey]netip.Addr // the VTEP's underlay address
	// Sysctls are paths below /proc/sys with their values: "net/ipv4/ip_forward" →
	// "1". They are only set, never removed. A path of the form
	// net/ipv4/conf/DEV/... belongs to the link DEV.
	Sysctls map[string]string
}

// Kind is the kernel's kind of a link.
type Kind string

// The kinds of links that are ours.
const (
	VXLAN Kind = "vxlan"
	IFB   Kind = "ifb"  // shapes what a pod sends, which is ingress on the host's end of its pair
	Veth  Kind = "veth" // the host end of a pod's pair; made when the pod is added, never by Apply
)

// Link is a link that is ours. All links are wanted up.
type Link struct {
	Kind  Kind
	MTU   int
	MAC   MAC       // the zero MAC: whatever it has
	VXLAN VXLANSpec // of Kind VXLAN
	// SoftChecksum turns the device's transmit checksums off, on Kind VXLAN: the
	// kernel makes them before the packet is wrapped.
	SoftChecksum bool
	// Shape is how much the link sends, on Kind Veth and IFB. IngressTo, on Kind Veth, is
	// the IFB link through which what comes in by the link goes first.
	Shape     Shape
	IngressTo string
	// Down is how Read shows a link that is not up. It is never wanted.
	Down bool
}

// Shape is a token bucket. The zero Shape is none.
type Shape struct {
	Rate  uint64 // bytes a second
	Burst uint64 // bytes
}

// VXLANSpec is what cannot be changed on an existing VXLAN link: another spec
// means a new link.
type VXLANSpec struct {
	ID     uint32     // VNI
	Port   uint16     // UDP destination port
	Local  netip.Addr // this VTEP's underlay address
	Device string     // the underlay link; empty: whichever the route to the peer names
	// Learning is how Read shows a link that learns addresses from what it
	// receives. It is never wanted: the FDB is ours alone.
	Learning bool
}

// Addr is an address on one of our links.
type Addr struct {
	Dev    string
	Prefix netip.Prefix // not masked: address and length
}

// RouteKey identifies a route of the main table.
type RouteKey struct{ Dst netip.Prefix }

// Route is the rest of a route.
type Route struct {
	Via    netip.Addr // zero: on link
	Dev    string     // empty if Unreachable
	Src    netip.Addr // preferred source; zero: the kernel's choice
	OnLink bool       // Via is reachable on Dev without a route to it
	MTU    int        // 0: the link's
	// Unreachable answers with ICMP instead of forwarding (RTN_UNREACHABLE).
	Unreachable bool
}

// NeighKey identifies a permanent neighbour.
type NeighKey struct {
	Dev  string
	Addr netip.Addr
}

// FDBKey identifies an entry of a VXLAN link's forwarding database.
type FDBKey struct {
	Dev string
	MAC MAC
}

// NewState gives an empty State with all its maps made.
func NewState() State {
	return State{
		Links: map[string]Link{}, Addrs: map[Addr]struct{}{}, Routes: map[RouteKey]Route{},
		Neighs: map[NeighKey]MAC{}, FDB: map[FDBKey]netip.Addr{}, Sysctls: map[string]string{},
	}
}

// Underlay is what Compile has to know of the link that joins the node to the
// others: facts of the kernel, read by ReadUnderlay.
type Underlay struct {
	Device string
	MTU    int
	// Addrs are the device's global addresses with their prefix lengths, not
	// masked. A peer inside one of the prefixes is on the same L2 segment.
	Addrs []netip.Prefix
	// RARoute says that the device has an IPv6 default route from router
	// advertisements, which the kernel drops when forwarding is turned on unless the
	// device's accept_ra is 2.
	RARoute bool
}
