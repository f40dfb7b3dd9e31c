// Package overlay decides how the nodes' pod networks are joined: it compiles
// the cluster's nodes and the node's own pods into the links, addresses, routes,
// neighbours and FDB entries that the node should have. It is pure;
// kernel/link brings the result to the kernel.
package overlay

import (
	"net/netip"

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

// Config is the same on all nodes of a cluster.
type Config struct {
	Mode    Mode
	Cluster string // names the cluster; VTEP MACs are made from it and the node's name
	VNI     uint32 // default 1
	Port    uint16 // VXLAN's UDP port, default 8472
}

// Pod is one local pod interface, from the allocation record.
type Pod struct {
	Link  string   // the host end's name
	MAC   link.MAC // the pod end's address
	Addrs []netip.Addr
}
