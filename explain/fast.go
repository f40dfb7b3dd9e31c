package explain

import (
	"net/netip"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/overlay/fastpath"
)

// fastText is what a hop says of a packet that a node's fast path takes.
const fastText = "the fast path takes it: what follows at this node, its program does, past routing and netfilter"

// fast says that a node's fast path takes a packet which the node does not
// translate.
func (t *traveller) fast(node string, src, dst netip.Addr) bool {
	s := t.Fast[node]
	if s == nil || t.protocol == cluster.SCTP {
		return false
	}
	from, fromHere := takes(s, src)
	to, toHere := takes(s, dst)
	return from && to && (fromHere || toHere)
}

// takes says that an address is of a pod whose packets take the fast path, and
// whether it is one of this node.
func takes(s *fastpath.State, a netip.Addr) (fast, here bool) {
	if p, local := s.Pods[a]; local {
		return p.Normal == "", true
	}
	for cidr := range s.Peers {
		if cidr.Contains(a) {
			return true, false
		}
	}
	return false, false
}

// translatedAt says that the node has translated the packet.
func (p *packet) translatedAt() bool {
	for _, n := range p.nat {
		if n.node == p.at {
			return true
		}
	}
	return p.masq != ""
}
