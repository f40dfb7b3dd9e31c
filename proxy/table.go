// Package proxy turns Services and their endpoints into a Table of frontends
// and backends, and says by Table.Lookup what a packet to a frontend must meet.
// It is pure: the renderers (proxy/nftables, ...) bring a Table to the kernel.
package proxy

import (
	"net/netip"

	"github.com/podlane/podlane/cluster"
)

// Table is what the service proxy of one node should do. An entry whose Service
// and slices did not change keeps its pointer from one Table to the next, so
// two Tables are compared with Map.Changed.
type Table struct {
	Services cluster.Map[Entry]
	// NodePorts are where NodePorts answer: on the node's own addresses that are in
	// one of these prefixes, loopback excepted. Sorted.
	NodePorts []netip.Prefix
	// ServiceCIDRs are the ranges that cluster IPs come from, sorted: an address in
	// them that no Service has is dropped. With none nothing is known.
	ServiceCIDRs []netip.Prefix
	facts        facts  // what the entries depend on beside their objects
	silent       Silent // likewise, of one Service
}

// Entry is the part of a Table that belongs to one Service.
type Entry struct {
	Key   cluster.Key
	Ports []Port // one for each port and protocol of the Service, sorted by Name
	// HealthCheckNodePort is where to answer whether this node has endpoints; 0 is
	// nowhere.
	HealthCheckNodePort uint16
	// LocalReady is the number of addresses of ready endpoints on this node, of
	// IPv4 and of IPv6.
	LocalReady [2]int
}

// Port is one port of a Service.
type Port struct {
	Name      string // the Service port's name; "" where it has none
	Protocol  cluster.Protocol
	Frontends []Frontend // sorted by address, each address once
	// Endpoints are those of IPv4 and of IPv6 (see Family).
	Endpoints [2]Endpoints
	// InternalLocal and ExternalLocal say that the traffic policy is Local.
	InternalLocal, ExternalLocal bool
	// Affinity is how many seconds a client stays with its endpoint after its last
	// new connection; 0 is no affinity.
	Affinity uint32
	// Count asks for counters of each endpoint: by the Service's annotation, or Config.Counted.
	Count bool
	// MasqueradeAll is Config's.
	MasqueradeAll bool
}

// Family is the index in Port.Endpoints.
func Family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// Kind is what sort of address a frontend is.
type Kind uint8

// The kinds of frontends. All but ClusterIP are external: the external traffic
// policy is theirs.
const (
	ClusterIP Kind = iota
	ExternalIP
	LoadBalancer
	NodePort
)

// String gives Kubernetes' name of the kind.
func (k Kind) String() string {
	return [...]string{"ClusterIP", "ExternalIP", "LoadBalancer", "NodePort"}[k]
}

// Frontend is an address that clients connect to.
type Frontend struct {
	Kind Kind
	// Addr is the address and port. That of a NodePort is unspecified, 0.0.0.0 or
	// ::, and stands for what Table.NodePorts says.
	Addr netip.AddrPort
	// Sources, where there is any, are the clients that may use it; all others are
	// dropped. Of LoadBalancer addresses only. Sorted.
	Sources []netip.Prefix
}

// Endpoints are where connections to a port may go, in one family. Lists are
// sorted, without duplicates, and nil where no traffic policy asks for them.
type Endpoints struct {
	// Cluster are the endpoints for the policy Cluster: those that the topology
	// hints leave for this node.
	Cluster []netip.AddrPort
	// Local are the endpoints for the policy Local: those on this node.
	Local []netip.AddrPort
	// Any says that some endpoint anywhere could serve. Where none can, clients are
	// refused at once; where only none of this node can, dropped.
	Any bool
	// Serving are all endpoints of a UDP port that serve, wherever: a flow to one
	// of these is a good flow. Nil for other protocols.
	Serving []netip.AddrPort
}

// Way is what new connections to a frontend meet, after its Sources.
type Way struct {
	// Backends are where they go, each as likely. With none they meet Empty.
	Backends []netip.AddrPort
	Empty    Verdict // Reject or Drop
	// Masquerade is whose source address is replaced.
	Masquerade Masquerade
	All        bool // Everyone is so by Config.MasqueradeAll
	// Inside, where Short, is where connections of the node itself and of its pods
	// go instead; only those of the node itself are masqueraded. It has an endpoint.
	Inside []netip.AddrPort
	Short  bool
}

// Masquerade says whose source addresses are replaced by the node's.
type Masquerade uint8

// Whom to masquerade. A pod that reaches itself always is.
const (
	Nobody   Masquerade = iota
	Others              // all clients but pods of this node
	Everyone            // all clients, since the endpoint may be on another node or all are to be
)

// Way gives what connections to one of the port's frontends meet.
func (p *Port) Way(f Frontend) Way {
	e := &p.Endpoints[Family(f.Addr.Addr().Is6())]
	w := Way{Empty: Reject}
	if e.Any {
		w.Empty = Drop
	}
	inside := Others
	if p.MasqueradeAll {
		inside, w.All = Everyone, f.Kind == ClusterIP
	}
	switch {
	case f.Kind == ClusterIP && p.InternalLocal:
		w.Backends, w.Masquerade = e.Local, inside
	case f.Kind == ClusterIP:
		w.Backends, w.Masquerade = e.Cluster, inside
	case p.ExternalLocal:
		w.Backends, w.Masquerade = e.Local, Nobody
		w.Inside, w.Short = e.Cluster, len(e.Cluster) > 0
	default:
		w.Backends, w.Masquerade = e.Cluster, Everyone
	}
	return w
}
