package doctor

import (
	"fmt"

	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/overlay"
)

var meshChecks = []Check{
	{ID: "PL-060", Title: "a node does not reach another node", Node: lostPing("underlay", false)},
	{ID: "PL-061", Title: "full-size packets to another node are lost", Node: lostPing("underlay", true)},
	{ID: "PL-062", Title: "a node does not reach another node's pods", Node: lostPing("overlay", false)},
	{ID: "PL-063", Title: "full-size packets to another node's pods are lost", Node: lostPing("overlay", true)},
	{ID: "PL-064", Title: "the nodes' underlay links have different MTUs", All: differentMTUs},
}

// lostPing finds the first way that is lost: a full-size packet counts where a
// small one passes, and the overlay where the underlay does.
func lostPing(layer string, full bool) func(*observe.Exam) []Finding {
	return func(e *observe.Exam) []Finding {
		var list []Finding
		for _, p := range e.Pings {
			if p.OK || p.Denied || p.Layer != layer || p.Full != full || layer == "overlay" && !reached(e, p.Peer, "underlay", p.To.Is6()) || full && !reached(e, p.Peer, layer, p.To.Is6()) {
				continue
			}
			what := "a small packet"
			mend := fmt.Sprintf("podlane explain node/%s node-or-pod-of-%s --verify names the hop; firewalls must let UDP ports %d and %d and ICMP pass between nodes", e.Node, p.Peer, vxlanPort(e), overlay.ProbePort)
			if full {
				what = fmt.Sprintf("a packet of %d bytes that may not be fragmented", p.Size)
				mend = "give all links between the nodes one MTU, or podlane agents a smaller one: ip link set DEV mtu N on every node"
			}
			list = append(list, Finding{Evidence: fmt.Sprintf("%s from %s to %s of %s: %s", what, e.Node, p.To, p.Peer, p.Error), Mend: mend})
		}
		return list
	}
}

// reached says that the small packet of a layer came back.
func reached(e *observe.Exam, peer, layer string, v6 bool) bool {
	for _, p := range e.Pings {
		if p.Peer == peer && p.Layer == layer && !p.Full && p.To.Is6() == v6 {
			return p.OK
		}
	}
	return true
}

func differentMTUs(exams []*observe.Exam) []Finding {
	most := 0
	for _, e := range exams {
		most = max(most, e.Underlay.MTU)
	}
	var list []Finding
	for _, e := range exams {
		if e.Underlay.MTU > 0 && e.Underlay.MTU < most {
			list = append(list, Finding{Node: e.Node, Evidence: fmt.Sprintf("%s has MTU %d, and other nodes' have %d: what they send at full size may vanish here", e.Underlay.Device, e.Underlay.MTU, most),
				Mend: fmt.Sprintf("ip link set %s mtu %d", e.Underlay.Device, most)})
		}
	}
	return list
}
