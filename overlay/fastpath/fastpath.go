// Package fastpath decides which packets between pods may leave the kernel's long way, and compiles
// it into the content of the maps that the programs of kernel/bpf read. It is pure and touches no
// kernel; where it leaves something out, that something takes the normal path, which is always
// complete on its own.
package fastpath

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// Reason is why a pod or a device keeps to the normal path.
type Reason string

// The reasons.
const (
	OptOut Reason = "opt-out" // the pod's annotation says so
	// Policy: there is a NetworkPolicy in the pod's namespace. Podlane enforces none,
	// and who does would not see packets on the fast path.
	Policy    Reason = "policy"
	Bandwidth Reason = "bandwidth" // the pod has a bandwidth limit, by annotation
	// Shaped is a device with a queueing discipline or a classifier of someone
	// else's, which a shortcut would pass by: the bandwidth plugin, a capture.
	Shaped  Reason = "shaped"
	Missing Reason = "missing" // there is no such device (yet)
	// Bare is a device whose packets have no Ethernet header, which the programs
	// read: WireGuard, a tun, an IP tunnel.
	Bare Reason = "no Ethernet"
	// Ipsec is a peer to or from whose pods an IPsec policy of the node's says something,
	// that the normal path alone looks at.
	Ipsec Reason = "IPsec"
)

// Role is what the program at a device's ingress does.
type Role string

// The roles.
const (
	FromPod Role = "from_pod" // the host's end of a pod's pair: packets that the pod sends
	ToPod   Role = "to_pod"   // the uplink and the VTEP: packets of other nodes
)

// Pod is where the packets for one local pod address go.
type Pod struct {
	Dev string // the host's end
	MAC link.MAC
	MTU int // of the pod's end
	// Normal keeps the address out of the fast path, and is why.
	Normal Reason
}

// Peer is the way to the pods of another node.
type Peer struct {
	Dev string // the uplink or the VTEP
	MTU int    // of that device, or of the route
	// Via is the peer node, on the uplink's own segment. It is the zero Addr for a
	// peer behind VXLAN, which is addressed by MAC.
	Via      netip.Addr
	Src, Dst link.MAC // the two VTEPs'
	// Outer is how the program encapsulates packets for a peer behind VXLAN. Where it is
	// zero, or the uplink is not the way to the node just now, the VTEP does.
	Outer Outer
	// From are the devices by which its packets may come: a peer on the same segment
	// may still take the other way than we, until its probe has come back.
	From []string
}

// Outer is what VXLAN puts around a packet (RFC 7348, section 5), and where it leaves.
type Outer struct {
	Dev      string // the uplink
	Src, Dst netip.Addr
	VNI      uint32
	Port     uint16 // UDP
}

// State is what the programs' maps have, and where the programs are.
type State struct {
	Pods    map[netip.Addr]Pod
	Peers   map[netip.Prefix]Peer
	Devices map[string]Role
	Normal  map[string]Reason // devices left out, by name, and networks
}

// NewState gives an empty State with all its maps made: nothing takes the fast
// path.
func NewState() State {
	return State{
		Pods: map[netip.Addr]Pod{}, Peers: map[netip.Prefix]Peer{},
		Devices: map[string]Role{}, Normal: map[string]Reason{},
	}
}

// Device is what has to be known of a link of the node.
type Device struct {
	Queued   bool // a queueing discipline of its own, which a veth has not
	Filtered bool // a classifier or program of someone else's
	Bare     bool // packets without an Ethernet header
}

// Selector is which packets an IPsec policy is for, either way.
type Selector struct{ Src, Dst netip.Prefix }

func (s Selector) between(a, b netip.Prefix) bool {
	return s.Src.Overlaps(a) && s.Dst.Overlaps(b) || s.Src.Overlaps(b) && s.Dst.Overlaps(a)
}

// Input is all that Compile decides from.
type Input struct {
	Overlay overlay.Input
	Link    link.State        // what overlay.Compile made of Overlay
	Devices map[string]Device // the links that the node has
	IPsec   []Selector        // the policies of the node
	Off     map[string]Reason // host ends of pods that are not to take the fast path
}

// Compile gives the State for an Input. Peers come from the routes that the
// overlay decided on, so the fast path never goes where the normal path would
// not.
func Compile(in Input) State {
	s := NewState()
	s.pods(in)
	s.peers(in)
	return s
}

// use has a program at a device, or remembers why not.
func (s *State) use(in Input, dev string, role Role) {
	d, exists := in.Devices[dev]
	switch {
	case !exists:
		s.Normal[dev] = Missing
	case d.Bare:
		s.Normal[dev] = Bare
	case d.Filtered || d.Queued && role == FromPod:
		s.Normal[dev] = Shaped
	}
	if s.Normal[dev] == "" {
		s.Devices[dev] = role
	}
}

func (s *State) pods(in Input) {
	for _, p := range in.Overlay.Pods {
		if off := in.Off[p.Link]; off != "" {
			s.Normal[p.Link] = off
		} else {
			s.use(in, p.Link, FromPod)
		}
		if s.Normal[p.Link] == Missing {
			continue
		}
		mtu := p.MTU
		if mtu == 0 { // which a pod on record is not: it asks for all nodes
			mtu = overlay.PodMTU(in.Overlay)
		}
		for _, a := range p.Addrs {
			s.Pods[a] = Pod{Dev: p.Link, MAC: p.MAC, MTU: mtu, Normal: s.Normal[p.Link]}
		}
	}
}

func (s *State) peers(in Input) {
	for key, r := range in.Link.Routes {
		if r.Unreachable || !r.Via.IsValid() {
			continue
		}
		if in.encrypts(key.Dst) {
			s.Normal[key.Dst.String()] = Ipsec
			continue
		}
		p := Peer{Dev: r.Dev, MTU: cmp.Or(r.MTU, deviceMTU(in, r.Dev))}
		if r.Dev == overlay.Device {
			mac, known := in.Link.Neighs[link.NeighKey{Dev: r.Dev, Addr: r.Via}]
			if !known {
				continue
			}
			p.Src, p.Dst = in.Link.Links[r.Dev].MAC, mac
			node := in.Link.FDB[link.FDBKey{Dev: r.Dev, MAC: mac}]
			p.From, p.Outer = in.from(node, r.Dev), in.outer(in.Link.Links[r.Dev], node)
		} else {
			p.Via, p.From = r.Via, in.from(r.Via, r.Dev)
		}
		// Both directions or none: a firewall of the host's that drops what
		// conntrack finds invalid must not see half of a flow.
		all := true
		for _, dev := range p.From {
			s.use(in, dev, ToPod)
			all = all && s.Normal[dev] == ""
		}
		if p.Outer.Dev != "" {
			s.use(in, p.Outer.Dev, ToPod)
		}
		if all {
			s.Peers[key.Dst] = p
		}
	}
}

// encrypts says that there is an IPsec policy for what the node's pods send to a network
// or get from there. Packets in VXLAN meet those for the nodes too: see outer.
func (in Input) encrypts(peer netip.Prefix) bool {
	own := in.Overlay.Nodes.Get(cluster.Key{Name: in.Overlay.Node})
	return own != nil && slices.ContainsFunc(in.IPsec, func(s Selector) bool {
		return slices.ContainsFunc(own.PodCIDRs, func(c netip.Prefix) bool { return s.between(c, peer) })
	})
}

// outer gives what a VTEP puts around packets for another node: nothing where something on
// the normal path has to see them, or to make their checksums. Over IPv6 the peer would have
// to take packets without a checksum, which a VTEP does not unless told.
func (in Input) outer(vtep link.Link, node netip.Addr) Outer {
	v := vtep.VXLAN
	d, exists := in.Devices[v.Device]
	if vtep.SoftChecksum || in.Devices[overlay.Device].Queued || !exists || d.Bare || !v.Local.Is4() || !node.Is4() || in.between(v.Local, node) {
		return Outer{}
	}
	return Outer{Dev: v.Device, Src: v.Local, Dst: node, VNI: v.ID, Port: v.Port}
}

// between says that there is an IPsec policy for what two nodes send to one another.
func (in Input) between(a, b netip.Addr) bool {
	return slices.ContainsFunc(in.IPsec, func(s Selector) bool {
		return s.between(netip.PrefixFrom(a, a.BitLen()), netip.PrefixFrom(b, b.BitLen()))
	})
}

// from gives the devices by which packets of the peer node with an address may come,
// to which we send by dev.
func (in Input) from(node netip.Addr, dev string) []string {
	if mode := cmp.Or(in.Overlay.Config.Mode, overlay.Auto); mode != overlay.Auto || !in.Overlay.OnLink(node) {
		return []string{dev}
	}
	devs := []string{in.Overlay.Underlay.Device}
	if _, vxlan := in.Link.Links[overlay.Device]; vxlan {
		devs = append(devs, overlay.Device)
	}
	return devs
}

func deviceMTU(in Input, dev string) int {
	if l, ours := in.Link.Links[dev]; ours {
		return l.MTU
	}
	return cmp.Or(in.Overlay.Underlay.MTU, 1500)
}
