package cluster

import "net/netip"

// Protocol is an IP protocol number.
type Protocol uint8

// The protocols of Services, by their IP protocol numbers.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String gives Kubernetes' name of the protocol.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return "?"
}

// Node is a machine of the cluster.
type Node struct {
	Key
	UID string
	// Created is when the API server got it, in seconds of Unix time; 0 where that is
	// not known. Of two nodes that claim the same, the older one has it.
	Created int64
	// Addresses are the InternalIPs in the order of the object: the first of a
	// family is the node's address of that family.
	Addresses []netip.Addr
	// PodCIDRs are masked prefixes, in the order of the object.
	PodCIDRs []netip.Prefix
	// Zone is the label topology.kubernetes.io/zone.
	Zone string
	// Leaving says that the node is about to go: deleted, or tainted by the cluster
	// autoscaler. Load balancers are told to send it nothing new.
	Leaving  bool
	Problems []Problem
}

// Address gives the node's address of a family, or the zero Addr.
func (n *Node) Address(v6 bool) netip.Addr {
	for _, a := range n.Addresses {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// Namespace is a namespace that exists.
type Namespace struct{ Key }

// Pod is a pod that has been placed on a node.
type Pod struct {
	Key
	UID         string
	Node        string
	IPs         []netip.Addr
	HostNetwork bool
	// Done says that the pod has ended (Succeeded or Failed) and no longer has
	// its addresses.
	Done      bool
	Ready     bool
	Hostname  string
	Subdomain string
	// NormalPath is why the pod's packets are not to take the fast path: "opt-out",
	// "bandwidth", or "".
	NormalPath string
	// RulesOnly is why the pod's connections to Services are not to be translated at
	// its sockets: "opt-out", "mesh", or "".
	RulesOnly string
	Problems  []Problem
}

// ServiceType is a Service's spec.type.
type ServiceType string

// The types of Services.
const (
	ClusterIP    ServiceType = "ClusterIP"
	NodePort     ServiceType = "NodePort"
	LoadBalancer ServiceType = "LoadBalancer"
	ExternalName ServiceType = "ExternalName"
)

// Service is a Service of the API, reduced to what a network needs of it.
type Service struct {
	Key
	UID  string
	Type ServiceType
	// ClusterIPs are the Service's virtual addresses, at most one a family. There
	// is none for a headless Service and for an ExternalName one.
	ClusterIPs []netip.Addr
	Headless   bool
	// ProxyName is the label service.kubernetes.io/service-proxy-name: where it
	// is set, the Service is another proxy's.
	ProxyName string
	// ExternalName is the target name of a Service of that type.
	ExternalName             string
	PublishNotReadyAddresses bool
	Ports                    []ServicePort
	// ExternalIPs are spec.externalIPs, of both families.
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the addresses of status.loadBalancer.ingress whose ipMode
	// is VIP: those that arrive at nodes as they are.
	LoadBalancerIPs []netip.Addr
	// SourceRanges are spec.loadBalancerSourceRanges, masked.
	SourceRanges []netip.Prefix
	// InternalLocal and ExternalLocal say that the traffic policy of that kind is
	// Local. ExternalLocal is only of Services that have an external side.
	InternalLocal, ExternalLocal bool
	// HealthCheckNodePort is of LoadBalancer Services with ExternalLocal; else 0.
	HealthCheckNodePort uint16
	// Affinity is how many seconds a client stays at its endpoint after its last
	// new connection (sessionAffinity ClientIP); 0 is no affinity.
	Affinity uint32
	// CountEndpoints is the annotation podlane.dev/count-endpoints="true": count new
	// connections of each endpoint, not only of each port.
	CountEndpoints bool
	Problems       []Problem
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Protocol Protocol
	Port     uint16
	NodePort uint16
}

// EndpointSlice is a slice of a Service's endpoints.
type EndpointSlice struct {
	Key
	// Service is the label kubernetes.io/service-name. A slice without it is not
	// in a Snapshot.
	Service string
	// Headless is the label service.kubernetes.io/headless: the slice is for DNS
	// and not for a service proxy.
	Headless bool
	IPv6     bool // the slice's addressType
	// Triggered is when what made this state of the slice happened: the annotation
	// endpoints.kubernetes.io/last-change-trigger-time, in RFC 3339, "" where there is
	// none.
	Triggered string
	Ports     []EndpointPort
	Endpoints []Endpoint
	Problems  []Problem
}

// EndpointPort is one port of all endpoints of a slice.
type EndpointPort struct {
	Name     string
	Protocol Protocol
	Port     uint16
}

// Endpoint is one member of a slice. Conditions have the API's defaults
// applied: ready and serving are true where unset.
type Endpoint struct {
	Address     netip.Addr // addresses[0]; the API leaves the others without meaning
	Ready       bool
	Serving     bool
	Terminating bool
	Node        string
	Zone        string
	Hostname    string
	Pod         Key // targetRef, where it is a Pod
	// ZoneHints and NodeHints are the topology hints of the slice's controller.
	ZoneHints []string
	NodeHints []string
}

// ServiceCIDR is a range that cluster IPs are allocated from.
type ServiceCIDR struct {
	Key
	CIDRs    []netip.Prefix // masked
	Problems []Problem
}

// ServiceSlices are the slices of one Service, sorted by name.
type ServiceSlices struct{ Slices []*EndpointSlice }
