package oracle

import (
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/packet"
)

// Difference is one that is wanted.
type Difference struct {
	Name, Reason, Link string
	is                 func(*group) bool
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
}}
