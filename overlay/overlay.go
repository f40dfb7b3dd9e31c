// Package overlay decides how the nodes' pod networks are joined: it compiles
// the cluster's nodes and the node's own pods into the links, addresses, routes,
// neighbours and FDB entries that the node should have. It is pure;
// kernel/link brings the result to the kernel.
package overlay

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
)

// Mode says how packets travel to the pods of another node.
type Mode string

// The modes.
const (
	// Auto is Direct to the nodes on the same L2 segment and VXLAN to the others.
	Auto Mode = "auto"
	// Direct is a route by way of the other node's own address.
	Direct Mode = "direct"
	// VXLAN is Ethernet in UDP (RFC 7348), one VTEP a node.
	VXLAN Mode = "vxlan"
)

// Device is the name of a node's VTEP.
const Device = "pl-vxlan"

// Defaults of Config. They are flannel's, so that firewalls made for it fit.
const (
	DefaultVNI  = 1
	DefaultPort = 8472
)

// Config is the same on all nodes of a cluster.
type Config struct {
	Mode Mode // "": Auto
	// LargeMTU gives pods the underlay's MTU where no peer is behind VXLAN. With Auto
	// they have VXLAN's otherwise, since a peer may be any day.
	LargeMTU bool
	Cluster  string // names the cluster; VTEP MACs are made from it and the node's name
	VNI      uint32 // 0: DefaultVNI
	Port     uint16 // VXLAN's UDP port; 0: DefaultPort
}

func (c Config) withDefaults() Config {
	c.Mode = cmp.Or(c.Mode, Auto)
	c.VNI = cmp.Or(c.VNI, DefaultVNI)
	c.Port = cmp.Or(c.Port, DefaultPort)
	return c
}

// Valid says what of the settings cannot be.
func (c Config) Valid() error {
	switch {
	case c.VNI >= 1<<24:
		return fmt.Errorf("VNI %d of VXLAN: it has 24 bits", c.VNI)
	case c.Port == ProbePort:
		return fmt.Errorf("UDP port %d is of the agents' probes, and cannot be VXLAN's too", c.Port)
	}
	return nil
}

// UDPPort is the VTEPs' port.
func (c Config) UDPPort() uint16 { return c.withDefaults().Port }

// ProbePort is the UDP port of the agents' probes, one above VXLAN's usual one, so
// that one range lets both pass a firewall.
const ProbePort = DefaultPort + 1

// Pod is one local pod interface, from the allocation record.
type Pod struct {
	Link  string   // the host end's name
	MAC   link.MAC // the pod end's address
	Addrs []netip.Addr
	// MTU is the one the pod was made with, 0 for today's. The host's end keeps it:
	// a packet that one end may send and the other may not receive is dropped in
	// silence, while one too long for the way behind is answered with ICMP.
	MTU int
	// ToPod and FromPod limit the pod's bandwidth; the zero Shape does not.
	ToPod, FromPod link.Shape
}

// Shaper is the name of the link that limits what a pod sends, for the name of the
// host's end of its pair. "-" is in no name of such an end.
func Shaper(hostEnd string) string { return link.Prefix + "-" + hostEnd[min(3, len(hostEnd)):] }

// PodLinks are the links of a pod on its node, by name: the host's end of its pair, and
// what limits its bandwidth.
func PodLinks(p Pod) map[string]link.Link {
	host := link.Link{Kind: link.Veth, MTU: p.MTU, MAC: HostMAC, Shape: p.ToPod}
	links := map[string]link.Link{}
	if p.FromPod != (link.Shape{}) {
		host.IngressTo = Shaper(p.Link)
		links[host.IngressTo] = link.Link{Kind: link.IFB, MTU: p.MTU, Shape: p.FromPod}
	}
	links[p.Link] = host
	return links
}

// Input is all that Compile decides from.
type Input struct {
	Config   Config
	Node     string // the own node's name
	Nodes    cluster.Map[cluster.Node]
	Underlay link.Underlay // MTU 0: 1500
	Pods     []Pod
	// Probed is what was found out about the ways to other nodes; nil: nothing is
	// tried, and a way that looks right is taken for right, as in a Plan of manifests.
	// It is never changed.
	Probed *Probed
}

// HostMAC is the address of the host's end of every pod's pair. Each pair is a
// link of its own, so one address does for all, and a pod's neighbour entry of
// its gateway is right whatever happens to the pair.
var HostMAC = link.MAC{0x02, 'p', 'o', 'd', 'l', 'n'}

// VTEPMAC is the address of a node's VTEP: a hash of the cluster's and the node's
// names, so that every node can compute every other's and none depends on what a
// kernel or udev chose.
func VTEPMAC(clusterName, node string) link.MAC {
	sum := sha256.Sum256([]byte("podlane vtep\x00" + clusterName + "\x00" + node))
	mac := link.MAC(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// Gateway is the address by which the pods of a pod CIDR reach their node: the
// first after the network's own. A prefix of one address has none (the zero
// Addr).
func Gateway(podCIDR netip.Prefix) netip.Addr {
	if podCIDR.IsSingleIP() {
		return netip.Addr{}
	}
	return podCIDR.Masked().Addr().Next()
}

// Bytes that VXLAN adds to an inner IP packet: Ethernet 14, VXLAN 8, UDP 8, and
// the outer IP header of 20 or 40.
const (
	overhead4 = 50
	overhead6 = 70
)

// PodMTU is the MTU of pods made now: the underlay's where every packet goes
// directly, else what is left of it inside VXLAN.
func PodMTU(in Input) int {
	var peers []Peer
	if in.Config.LargeMTU {
		peers = Peers(in)
	}
	return podMTU(in, peers)
}

func podMTU(in Input, peers []Peer) int {
	mtu := cmp.Or(in.Underlay.MTU, 1500)
	switch {
	case in.Config.withDefaults().Mode == Direct || in.Config.LargeMTU && in.allDirect(peers):
		return mtu
	}
	return vtepMTU(in)
}

// vtepMTU is what the underlay leaves inside VXLAN.
func vtepMTU(in Input) int {
	mtu := cmp.Or(in.Underlay.MTU, 1500)
	switch {
	case in.underlay6():
		return mtu - overhead6
	}
	return mtu - overhead4
}

// underlay6 tells whether VXLAN's outer packets are IPv6: where the own node has
// no IPv4 address.
func (in Input) underlay6() bool {
	own := in.own()
	return own != nil && !own.Address(false).IsValid() && own.Address(true).IsValid()
}

func (in Input) own() *cluster.Node { return in.Nodes.Get(cluster.Key{Name: in.Node}) }

// Wiring is how a pod is to be attached: what kernel/link's AddPod needs beside
// the namespace. podLink is the name of the pod's end, "eth0".
func Wiring(in Input, p Pod, podLink string) link.PodSpec {
	spec := link.PodSpec{
		HostLink: p.Link, HostMAC: HostMAC, PodLink: podLink, PodMAC: p.MAC, Addrs: p.Addrs,
		MTU: cmp.Or(p.MTU, PodMTU(in)),
	}
	own := in.own()
	if own == nil {
		return spec
	}
	for _, v6 := range []bool{false, true} {
		if g := gatewayOf(p, own.PodCIDRs, v6); g.IsValid() {
			spec.Gateways = append(spec.Gateways, g)
		}
	}
	return spec
}

// gatewayOf gives a pod's gateway of a family: that of the CIDR its address is
// in, else of the node's first CIDR of the family. A pod without an address of
// the family has none.
func gatewayOf(p Pod, cidrs []netip.Prefix, v6 bool) netip.Addr {
	var first netip.Addr
	for _, a := range p.Addrs {
		if a.Is6() != v6 {
			continue
		}
		for _, c := range cidrs {
			if c.Contains(a) {
				return Gateway(c)
			}
			if c.Addr().Is6() == v6 && !first.IsValid() {
				first = Gateway(c)
			}
		}
	}
	return first
}
