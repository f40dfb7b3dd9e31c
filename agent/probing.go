package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/podlane/podlane/agent/probe"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// The kinds of targets.
const (
	toNode   = "node"   // the node's address: is its agent there at all?
	byDirect = "direct" // its probe address, by the direct route
	byVXLAN  = "vxlan"  // its gateway, through VXLAN
	full     = "full"   // the longest packet of the way in use
)

// trialTime is how long each phase of a trial of software checksums may take, and
// trialAgain how long it is before the next trial where they did not help, trialSoon
// where nothing can be said. trialWays bounds the ways that are asked.
const (
	trialTime  = 5 * time.Second
	trialAgain = 10 * time.Minute
	trialSoon  = 30 * time.Second
	trialWays  = 4
)

// trial finds out whether software checksums are what helps: ways that were lost
// arrive with them, are lost without them and arrive with them again. What only got
// well meanwhile is not lost the second time.
type trial struct {
	phase phase
	since time.Time // of the phase
	ways  []overlay.Way
	ask   bool      // the ways, as soon as the phase is in the kernel
	next  time.Time // no trial begins before
}

type phase int

const (
	noTrial  phase = iota
	adopted        // they are on, from an agent before this one, until a way arrives
	firstOn        // the ways were lost, and are to arrive
	off            // and are to be lost
	secondOn       // and are to arrive
)

// probing tries the ways to other nodes and tells the overlay what it found. Its
// fields belong to the goroutine of Run.
type probing struct {
	log     *slog.Logger
	prober  *probe.Prober
	results probe.Results
	probed  *overlay.Probed
	of      *overlay.Base // of the Plan whose targets are tried
	port    uint16        // VXLAN's
	ways    []overlay.Way
	trial   trial
	// listed are the ways for the status, of the Plan with this Base.
	listed    []PeerStatus
	listedFor *overlay.Base
	wrong     []cluster.Problem // of the ways and the results; nil: to be looked for
}

func newProbing(log *slog.Logger) *probing {
	return &probing{log: log, prober: probe.New(overlay.ProbePort, log), results: probe.Results{}}
}

// begin takes over what an agent before this one trusted, and the trial of checksums
// that it may not have ended.
func (p *probing) begin(in overlay.Input, have link.State) {
	if p.probed != nil {
		return
	}
	p.probed = overlay.TrustKernel(in, have)
	if p.probed.SoftChecksum {
		p.trial.phase, p.trial.since = adopted, time.Now()
	}
}

// targetName is asked for thousands of times in a turn of a big cluster.
func targetName(kind string, w overlay.Way) string {
	family := " IPv4 "
	if w.V6 {
		family = " IPv6 "
	}
	return kind + family + w.Node
}

// try has the ways of a Plan tried.
func (p *probing) try(pl *plan.Plan) {
	if p.of == pl.Base || pl.Base == nil {
		return
	}
	p.of, p.ways, p.port, p.wrong = pl.Base, nil, pl.Overlay.UDPPort(), nil
	own := pl.Snapshot.Nodes.Get(cluster.Key{Name: pl.Node})
	addrs := map[netip.Addr]string{}
	var targets []probe.Target
	for _, peer := range pl.Base.Peers {
		for _, a := range peer.Node.Addresses {
			addrs[a] = peer.Node.Name
		}
		for _, cidr := range peer.PodCIDRs {
			addrs[overlay.ProbeAddr(cidr)], addrs[overlay.Gateway(cidr)] = peer.Node.Name, peer.Node.Name
			w := overlay.Way{Node: peer.Node.Name, V6: cidr.Addr().Is6()}
			p.ways = append(p.ways, w)
			targets = append(targets, targetsOf(pl, own, peer.Node, w, cidr)...)
		}
	}
	p.prober.Peers(addrs)
	p.prober.Try(targets)
	if p.trial.ask {
		p.trial.ask = false
		var names []string
		for _, w := range p.trial.ways {
			names = append(names, targetName(toNode, w), targetName(byVXLAN, w))
		}
		p.prober.Now(names...)
	}
}

// targetsOf gives what is tried of one way.
func targetsOf(pl *plan.Plan, own, peer *cluster.Node, w overlay.Way, cidr netip.Prefix) []probe.Target {
	var out []probe.Target
	add := func(kind string, from, to netip.Addr, size int) {
		if !from.IsValid() || !to.IsValid() || from.Is6() != to.Is6() {
			return
		}
		t := probe.Target{Name: targetName(kind, w), Node: w.Node, From: from, To: to, Size: size}
		if kind != toNode {
			t.Witness = targetName(toNode, w)
		}
		out = append(out, t)
	}
	var ownCIDR netip.Prefix
	for _, c := range own.PodCIDRs {
		if c.Addr().Is6() == w.V6 {
			ownCIDR = c
		}
	}
	in := pl.OverlayInput()
	nodeFrom, nodeTo := own.Address(w.V6), peer.Address(w.V6)
	if !nodeTo.IsValid() {
		nodeFrom, nodeTo = own.Address(!w.V6), peer.Address(!w.V6)
	}
	add(toNode, nodeFrom, nodeTo, 0)
	if !ownCIDR.IsValid() {
		return out
	}
	if in.Config.Mode == overlay.Auto && in.OnLink(peer.Address(w.V6)) {
		add(byDirect, overlay.ProbeAddr(ownCIDR), overlay.ProbeAddr(cidr), 0)
	}
	switch r := pl.Link.Routes[link.RouteKey{Dst: cidr}]; r.Dev {
	case "":
	case overlay.Device:
		add(byVXLAN, overlay.Gateway(ownCIDR), overlay.Gateway(cidr), 0)
		add(full, overlay.Gateway(ownCIDR), overlay.Gateway(cidr), pl.Link.Links[overlay.Device].MTU)
	default:
		add(full, nodeFrom, nodeTo, pl.Underlay.MTU)
	}
	return out
}

func (p *probing) result(kind string, w overlay.Way) probe.Result {
	return p.results[targetName(kind, w)]
}

// judge takes new results. A way is trusted when packets arrive on it, and no longer
// when they do not while the node itself answers: an agent that is not there says
// nothing about the way.
func (p *probing) judge(results probe.Results, now time.Time) {
	p.results, p.listed, p.wrong = results, nil, nil
	fresh := &overlay.Probed{Direct: map[overlay.Way]bool{}, SoftChecksum: p.probed != nil && p.probed.SoftChecksum}
	for _, w := range p.ways {
		before := p.probed != nil && p.probed.Direct[w]
		now := before
		switch p.result(byDirect, w) {
		case probe.Arrives:
			now = true
		case probe.Lost:
			now = before && p.result(toNode, w) != probe.Arrives
		}
		if now != before {
			p.log.Info("direct way", "peer", w.Node, "ipv6", w.V6, "trusted", now)
		}
		if now {
			fresh.Direct[w] = true
		}
	}
	p.checksums(fresh, now)
	if !fresh.Equal(p.probed) {
		p.probed = fresh
	}
}

// vxlanLost says that packets in VXLAN do not arrive while others do.
func (p *probing) vxlanLost(w overlay.Way) bool {
	return p.result(byVXLAN, w) == probe.Lost && p.result(toNode, w) == probe.Arrives
}

// vxlanArrives says that packets in VXLAN arrive from a node that is there.
func (p *probing) vxlanArrives(w overlay.Way) bool {
	return p.result(byVXLAN, w) == probe.Arrives && p.result(toNode, w) == probe.Arrives
}

func those(ways []overlay.Way, are func(overlay.Way) bool) []overlay.Way {
	var out []overlay.Way
	for _, w := range ways {
		if are(w) {
			out = append(out, w)
		}
	}
	return out
}

// checksums tries, where VXLAN packets are lost, whether they arrive with checksums
// made by the kernel, and keeps to that where they do: a device that spoils them
// is known by what arrives, not by its name or the kernel's version.
func (p *probing) checksums(fresh *overlay.Probed, now time.Time) {
	switch p.trial.phase {
	case noTrial:
		lost := those(p.ways, p.vxlanLost)
		if len(lost) == 0 || fresh.SoftChecksum || now.Before(p.trial.next) {
			return
		}
		p.log.Warn("VXLAN packets are lost: trying checksums made by the kernel")
		p.enter(fresh, firstOn, lost, now)
	case adopted:
		if arrive := those(p.ways, p.vxlanArrives); len(arrive) > 0 {
			p.enter(fresh, off, arrive, now)
		} else if now.Sub(p.trial.since) > trialTime && len(those(p.ways, p.vxlanLost)) > 0 {
			p.giveUp(fresh, now)
		}
	case firstOn:
		p.step(fresh, p.vxlanArrives, off, now)
	case off:
		p.step(fresh, p.vxlanLost, secondOn, now)
	case secondOn:
		if p.step(fresh, p.vxlanArrives, noTrial, now); fresh.SoftChecksum && p.trial.phase == noTrial {
			p.log.Warn("VXLAN packets arrive only with checksums made by the kernel: the underlay's device spoils them; it stays so")
		}
	}
}

func (p *probing) enter(fresh *overlay.Probed, ph phase, ways []overlay.Way, now time.Time) {
	t := &p.trial
	t.phase, t.since, t.ways, t.ask = ph, now, ways[:min(len(ways), trialWays)], ph != noTrial
	fresh.SoftChecksum = ph != off
}

// step goes on when all ways of the trial are as they should be, or, when there was
// time enough, with those that are.
func (p *probing) step(fresh *overlay.Probed, should func(overlay.Way) bool, next phase, now time.Time) {
	good, late := those(p.trial.ways, should), now.Sub(p.trial.since) > trialTime
	switch {
	case len(good) == len(p.trial.ways), late && len(good) > 0:
		p.enter(fresh, next, good, now)
	case late:
		p.giveUp(fresh, now)
	}
}

// giveUp ends a trial without software checksums.
func (p *probing) giveUp(fresh *overlay.Probed, now time.Time) {
	t := &p.trial
	wait := trialSoon
	switch {
	case t.phase == off && len(those(t.ways, p.vxlanArrives)) > 0:
		p.log.Info("VXLAN packets arrive without checksums made by the kernel too")
	case t.phase != off && len(those(p.ways, p.vxlanLost)) > 0:
		p.log.Warn("VXLAN packets are lost with checksums made by the kernel too")
		wait = trialAgain
	default:
		p.log.Info("the trial of checksums made by the kernel says nothing: the nodes do not answer")
	}
	*t = trial{next: now.Add(wait)}
	fresh.SoftChecksum = false
}

// tick goes on with a trial that brings nothing new, and begins one that had to wait.
func (p *probing) tick(now time.Time) {
	if p.probed != nil {
		p.judge(p.results, now)
	}
}

// problems names the ways on which packets are lost. They are asked for in each turn of
// the loop, and looked for when something has changed.
func (p *probing) problems() []cluster.Problem {
	if p.wrong == nil {
		p.wrong = slices.Clip(p.findWrong())
	}
	return p.wrong
}

func (p *probing) findWrong() []cluster.Problem {
	out := []cluster.Problem{}
	for _, w := range p.ways {
		say := func(format string, args ...any) {
			out = append(out, cluster.Problem{Kind: "way to node", Key: cluster.Key{Name: w.Node}, Err: fmt.Sprintf(format, args...)})
		}
		family := "IPv4"
		if w.V6 {
			family = "IPv6"
		}
		there := p.result(toNode, w) == probe.Arrives
		switch {
		case there && p.result(byVXLAN, w) == probe.Lost:
			say("%s in VXLAN is lost, though the node answers: is UDP port %d open between nodes?", family, p.port)
		case there && p.result(byDirect, w) == probe.Lost:
			say("%s with pods' addresses is lost on the direct way, so VXLAN is used: does the fabric check source addresses?", family)
		case p.result(full, w) == probe.Lost && (there || p.result(byVXLAN, w) == probe.Arrives):
			say("%s packets of full length are lost, shorter ones arrive: the network between takes less than the link's MTU; lower that", family)
		}
	}
	if p.probed != nil && p.probed.SoftChecksum && p.trial.phase == noTrial {
		out = append(out, cluster.Problem{Kind: "link", Key: cluster.Key{Name: overlay.Device},
			Err: "the underlay's device spoils checksums of VXLAN packets, so the kernel makes them; that costs CPU time"})
	}
	return out
}

// PeerStatus is another node as this one reaches its pods.
type PeerStatus struct {
	Node string       `json:"node"`
	CIDR netip.Prefix `json:"podCIDR"`
	Way  string       `json:"way"` // direct, vxlan, none
	Why  string       `json:"why"`
	// Probe is what became of probes on this way: arrives, lost, unknown.
	Probe string `json:"probe"`
}

var resultNames = map[probe.Result]string{probe.Unknown: "unknown", probe.Arrives: "arrives", probe.Lost: "lost"}

// peers gives the ways of the Plan in force. They are made anew when the ways or the
// results have changed, since a turn of the loop asks for them.
func (a *Agent) peers() []PeerStatus {
	p := a.probing
	if p.listed == nil || p.listedFor != a.plan.Base {
		p.listed, p.listedFor = p.list(a.plan), a.plan.Base
	}
	return p.listed
}

// list gives the ways of a Plan, and why they are so.
func (p *probing) list(pl *plan.Plan) []PeerStatus {
	out := make([]PeerStatus, 0, len(p.ways))
	in := pl.OverlayInput()
	for _, peer := range pl.Base.Peers {
		for _, cidr := range peer.PodCIDRs {
			w := overlay.Way{Node: peer.Node.Name, V6: cidr.Addr().Is6()}
			s := PeerStatus{Node: w.Node, CIDR: cidr}
			kind := byDirect
			switch r := pl.Link.Routes[link.RouteKey{Dst: cidr}]; {
			case r.Dev == "":
				s.Way, s.Why = "none", "see problems"
			case r.Dev == overlay.Device:
				s.Way, s.Why, kind = "vxlan", p.why(in, peer.Node.Address(w.V6), w), byVXLAN
			case in.Config.Mode == overlay.Direct:
				s.Way, s.Why, kind = "direct", "--overlay=direct", toNode
			default:
				s.Way, s.Why = "direct", "on the same segment, and a probe arrived"
			}
			s.Probe = resultNames[p.result(kind, w)]
			out = append(out, s)
		}
	}
	return out
}

func (p *probing) why(in overlay.Input, a netip.Addr, w overlay.Way) string {
	switch {
	case in.Config.Mode == overlay.VXLAN:
		return "--overlay=vxlan"
	case !in.OnLink(a):
		return "not on the same segment"
	case p.result(toNode, w) != probe.Arrives:
		return "on the same segment, but its agent has not answered a probe yet"
	case p.result(byDirect, w) == probe.Unknown:
		return "on the same segment; with pods' addresses no probe has been answered yet"
	}
	return "on the same segment, but packets with pods' addresses are lost there"
}

// echoes gives what is known of the ways, in the words of doctor.
func (p *probing) echoes(pl *plan.Plan) []observe.PeerPing {
	var list []observe.PeerPing
	for _, w := range p.ways {
		peer := pl.Snapshot.Nodes.Get(cluster.Key{Name: w.Node})
		if peer == nil {
			continue
		}
		add := func(layer, kind string, to netip.Addr, size int) {
			r := p.result(kind, w)
			if r == probe.Unknown || !to.IsValid() {
				return
			}
			e := observe.PeerPing{Peer: w.Node, Layer: layer, Full: size > 0, Ping: observe.Ping{To: to, Size: size, OK: r == probe.Arrives}}
			if !e.OK {
				e.Error = fmt.Sprintf("its agent answers none of several echoes to UDP port %d", overlay.ProbePort)
			}
			list = append(list, e)
		}
		add("underlay", toNode, peer.Address(w.V6), 0)
		for _, cidr := range peer.PodCIDRs {
			if cidr.Addr().Is6() != w.V6 {
				continue
			}
			if pl.Link.Routes[link.RouteKey{Dst: cidr}].Dev == overlay.Device {
				add("overlay", byVXLAN, overlay.Gateway(cidr), 0)
				add("overlay", full, overlay.Gateway(cidr), pl.Link.Links[overlay.Device].MTU)
				continue
			}
			add("overlay", byDirect, overlay.ProbeAddr(cidr), 0)
			add("underlay", full, peer.Address(w.V6), pl.Underlay.MTU)
		}
	}
	return list
}
