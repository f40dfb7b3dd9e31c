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
}

// Entry is the part of a Table that belongs to one Service.
type Entry struct {
	Key   cluster.Key
	Ports []Port // one for each port and protocol of the Service, sorted by Name
}

// Port is one port of a Service.
type Port struct {
	Name      string // the Service port's name; "" where it has none
	Protocol  cluster.Protocol
	Frontends []netip.AddrPort // sorted; cluster IPs of both families
	// Backends4 and Backends6 are the endpoints that new connections are spread
	// over evenly, sorted and without duplicates. With none, a connection is
	// refused at once.
	Backends4 []netip.AddrPort
	Backends6 []netip.AddrPort
}

// Backends gives the backends of a family.
func (p *Port) Backends(v6 bool) []netip.AddrPort {
	if v6 {
		return p.Backends6
	}
	return p.Backends4
}
