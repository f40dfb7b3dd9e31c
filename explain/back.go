package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// answerPacket is the first packet back. Routes, not the way out, decide where it
// goes; only a node that translated the connection can undo that.
type answerPacket struct {
	at      string
	src     netip.AddrPort
	dst     netip.Addr
	local   bool
	nat     []translation
	asked   netip.AddrPort // by the client's packets
	hops    []Hop
	mtu     int
	verdict Verdict
	reason  string
}

func (a *answerPacket) hop(stage Stage, node, text string, objects ...Object) {
	a.hops = append(a.hops, Hop{Node: node, Stage: stage, Text: text, Objects: objects})
}

func (a *answerPacket) fits(mtu int) {
	if mtu > 0 && (a.mtu == 0 || mtu < a.mtu) {
		a.mtu = mtu
	}
}

// stop ends the walk.
func (a *answerPacket) stop(v Verdict, format string, args ...any) bool {
	a.verdict, a.reason = v, fmt.Sprintf(format, args...)
	return false
}

func (t *traveller) back(p packet, end End) *answerPacket {
	a := &answerPacket{asked: p.asked, at: end.Node, src: p.dst, dst: p.src, nat: slices.Clone(p.nat), local: end.Kind == "node", hops: []Hop{}}
	own := t.plan(a.at)
	if end.Kind == "pod" && !end.HostNetwork {
		if end.Addr.IsValid() && a.dst == end.Addr || slices.Contains(end.Addrs, a.dst) {
			a.verdict = Delivered // it never left the pod
			return a
		}
		if dev := podLink(own, p.dst.Addr()); dev != "" {
			l := own.Link.Links[dev]
			a.fits(l.MTU)
			a.hop(StagePod, a.at, fmt.Sprintf("eth0 of %s answers to %s over %s", end.Name, a.dst, dev), linkObject(own, dev)...)
		}
	}
	for range maxNodes {
		if !t.backAt(a) {
			return a
		}
	}
	a.stop(Unanswered, "the nodes send the answer in a circle")
	return a
}

// backAt takes the answer through one node. It gives false at the end of the way.
func (t *traveller) backAt(a *answerPacket) bool {
	own := t.plan(a.at)
	if own == nil {
		return a.stop(Unknown, "the state of node %s is not known here: the way back was not followed", orUnknownName(a.at))
	}
	translated := len(a.nat)
	a.untranslate()
	translated -= len(a.nat)
	switch {
	case t.isOwn(own, a.dst):
		return t.backHome(a, t.client.Kind == "node" || t.client.HostNetwork)
	case t.client.Kind == "outside" && a.dst == t.client.Addr:
		a.hop(StageUnderlay, a.at, fmt.Sprintf("to %s over %s, MTU %d", a.dst, own.Underlay.Device, own.Underlay.MTU), forwardingIf(own, a)...)
		a.fits(own.Underlay.MTU)
		return t.backHome(a, true)
	}
	if !a.local && translated == 0 && t.fast(a.at, a.src.Addr(), a.dst) {
		a.hop(StageFast, a.at, fastText)
	}
	key, r, ok := lookup(own.Link, a.dst)
	switch {
	case ok && r.Unreachable:
		return a.stop(Unanswered, "node %s has no pod %s to give the answer to", a.at, a.dst)
	case ok && !r.Via.IsValid():
		return t.backToPod(a, own, key, r)
	case ok && r.Dev == overlay.Device:
		return t.backTunnel(a, own, key, r)
	}
	via, objects := a.dst, forwardingIf(own, a)
	if ok {
		via, objects = r.Via, append(objects, object(own, link.RouteObject{RouteKey: key, Route: r}))
	}
	node := t.nodeWith(via)
	if node == "" {
		return a.stop(Unanswered, "node %s sends the answer to %s by its default route, away from the cluster", a.at, a.dst)
	}
	a.fits(own.Underlay.MTU)
	a.hop(StageRoute, a.at, fmt.Sprintf("the answer to %s goes to node %s (%s) over %s", a.dst, node, via, own.Underlay.Device), objects...)
	a.at, a.local = node, false
	return true
}

func forwardingIf(own *plan.Plan, a *answerPacket) []Object {
	if a.local {
		return nil
	}
	return forwarding(own, a.dst.Is6())
}

// untranslate undoes, newest first, what this node did to the connection.
func (a *answerPacket) untranslate() {
	for len(a.nat) > 0 {
		n := a.nat[len(a.nat)-1]
		if n.node != a.at || n.newSrc != a.dst || n.newDst.Addr() != a.src.Addr() {
			return
		}
		a.src, a.dst, a.nat = n.oldDst, n.oldSrc, a.nat[:len(a.nat)-1]
		a.hop(StageSource, a.at, fmt.Sprintf("conntrack knows the connection: the answer's source becomes %s again and it goes to %s", a.src, a.dst))
	}
}

// backHome is the arrival: the answer counts only when it comes from the address
// that was asked.
func (t *traveller) backHome(a *answerPacket, expected bool) bool {
	switch {
	case !expected:
		return a.stop(Unanswered, "the answer ends at node %s itself, which did not ask", a.at)
	case a.src != a.asked:
		return a.stop(Unanswered, "the answer comes from %s, but %s was asked: it does not pass the node that translated", a.src, a.asked)
	}
	return a.stop(Delivered, "")
}

func (t *traveller) backToPod(a *answerPacket, own *plan.Plan, key link.RouteKey, r link.Route) bool {
	pod := t.podOfLink(a.at, r.Dev, a.dst)
	nk := link.NeighKey{Dev: r.Dev, Addr: a.dst}
	objects := append(forwardingIf(own, a), object(own, link.RouteObject{RouteKey: key, Route: r}))
	if mac, ok := own.Link.Neighs[nk]; ok {
		objects = append(objects, object(own, link.NeighObject{NeighKey: nk, MAC: mac}))
	}
	a.fits(own.Link.Links[r.Dev].MTU)
	a.hop(StagePod, a.at, fmt.Sprintf("over %s to eth0 of %s", r.Dev, pod), objects...)
	return t.backHome(a, t.client.Kind == "pod" && t.client.Addr == a.dst)
}

func (t *traveller) backTunnel(a *answerPacket, own *plan.Plan, key link.RouteKey, r link.Route) bool {
	nk := link.NeighKey{Dev: r.Dev, Addr: r.Via}
	mac := own.Link.Neighs[nk]
	peer, mapped := own.Link.FDB[link.FDBKey{Dev: r.Dev, MAC: mac}]
	if !mapped {
		return a.stop(Unanswered, "node %s has no VTEP for %s", a.at, r.Via)
	}
	node := t.nodeWith(peer)
	objects := append(forwardingIf(own, a), object(own, link.RouteObject{RouteKey: key, Route: r}))
	objects = append(objects, linkObject(own, r.Dev)...)
	objects = append(objects, object(own, link.NeighObject{NeighKey: nk, MAC: mac}),
		object(own, link.FDBObject{FDBKey: link.FDBKey{Dev: r.Dev, MAC: mac}, Dst: peer}))
	a.fits(own.Link.Links[r.Dev].MTU)
	a.hop(StageTunnel, a.at, fmt.Sprintf("the answer to %s goes through VXLAN to node %s (%s)", a.dst, node, peer), objects...)
	a.at, a.local = node, false
	return true
}
