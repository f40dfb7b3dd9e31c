package ebpf

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Clients are the pods of a node whose connections are translated at the socket.
type Clients struct {
	Pods map[netip.Addr]bool
	// Own are the node's addresses: see Diff.
	Own []netip.Addr
}

// NewClients makes Clients of their addresses.
func NewClients(pods, own []netip.Addr) *Clients {
	c := &Clients{Pods: map[netip.Addr]bool{}, Own: own}
	for _, a := range pods {
		c.Pods[a] = true
	}
	return c
}

// Translates says that a pod's connection to a frontend, for which the Table gives
// a result, is translated at its socket; c may be nil.
func (c *Clients) Translates(src netip.Addr, p cluster.Protocol, r proxy.Result) bool {
	return c != nil && c.Pods[src] && p == cluster.TCP && r.Verdict == proxy.Balance && !r.Affinity && !r.Masquerade &&
		r.Frontend.Kind == proxy.ClusterIP && !slices.Contains(c.Own, r.Frontend.Addr.Addr())
}
