package oracle

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/history"
	"github.com/podlane/podlane/test/oracle/packet"
	"github.com/podlane/podlane/test/oracle/world"
)

// Difference is one that is wanted.
type Difference struct {
	Name, Reason, Link string
	// is says that a group shows it, and nothing else.
	is func(*group) bool
}

// Wanted are all differences that are no mismatch. There may be ten.
var Wanted = []Difference{{
	Name:   "TCP is refused by a reset, not by ICMP",
	Reason: "the kernel limits how many ICMP errors it sends a second, to one client and to all; a client whose error is not sent hangs. A reset is not limited. How a connection is refused is left open",
	Link:   "https://github.com/kubernetes-retired/kpng/pull/460",
	is: func(g *group) bool {
		of := func(side int, k packet.Kind) bool {
			for m := range g.seen[side] {
				if m.what == "refused" && m.kind == k {
					return true
				}
			}
			return false
		}
		return g.protocol == cluster.TCP && of(0, packet.Unreachable) && of(1, packet.Reset)
	},
}, {
	Name:   "a pod reaches itself also as an endpoint that names no node",
	Reason: "kube-proxy masquerades a pod that reaches itself only if the slice names the node; in slices written by hand no node is named, and the pod drops what comes from its own address",
	Link:   "https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/proxy/nftables/proxier.go#L1230",
	is:     func(g *group) bool { return g.client.name == "endpoint" && g.onlyMasqueraded() },
}, {
	Name:   "a port that no Service has, on a cluster IP or an address of a Service CIDR that is the node's own, is the node's",
	Reason: "a DNS cache on the node takes the cluster IP of the cluster's DNS for its own, and answers on ports of its own there, such as that of its health check; kube-proxy lets pods in and refuses or drops what the node itself sends",
	Link:   "https://github.com/kubernetes/kubernetes/blob/v1.36.3/cluster/addons/dns/nodelocaldns/nodelocaldns.yaml",
	is: func(g *group) bool {
		return g.bound && g.client.from == world.Node && (g.all(0, "refused") || g.all(0, "nothing")) && g.all(1, "pass")
	},
}}

// all says that all connections met this in one node.
func (g *group) all(side int, what string) bool {
	for m := range g.seen[side] {
		if m.what != what {
			return false
		}
	}
	return len(g.seen[side]) > 0
}

// onlyMasqueraded says that the nodes differ in nothing but that Podlane masqueraded
// what went to pods of the node.
func (g *group) onlyMasqueraded() bool {
	differ := false
	for side := range g.seen {
		for m := range g.seen[side] {
			if g.seen[1-side][m] > 0 {
				continue
			}
			differ = true
			if m.source.IsValid() != (side == 1) || !slices.Contains(history.EndpointPods(g.v6()), m.to.Addr()) || !g.anyTo(1-side, m.to) {
				return false
			}
		}
	}
	return differ
}

func (g *group) anyTo(side int, to netip.AddrPort) bool {
	for m := range g.seen[side] {
		if m.to == to {
			return true
		}
	}
	return false
}
