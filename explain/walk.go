package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// traveller follows packets of one access. It does what the kernel does with the
// objects of the Plans: the service rules at every node a packet comes into, then
// the route, then the link that the route names.
type traveller struct {
	*World
	answer    *Answer
	protocol  cluster.Protocol
	client    End
	target    netip.AddrPort
	frontends *frontends              // nil: not looked at yet
	tables    map[string]*proxy.Table // of Plans without one, by node
}

// maxNodes bounds the nodes that a packet passes: Plans that send it in a circle
// are an answer too.
const maxNodes = 8

// packet is a packet on its way, with what was done to it.
type packet struct {
	at    string // the node
	by    string // the link by which it has come there; "" is the underlay's
	src   netip.Addr
	dst   netip.AddrPort
	local bool // made by the node itself
	hops  []Hop
	nat   []translation
	masq  string // why the source is to be changed when it leaves
	mtu   int
	nodes int
	// of reaching this endpoint, num in den
	num, den uint64
	why      string         // of the source
	asked    netip.AddrPort // what the packet has for its destination when it leaves the client
}

// translation is what a node's conntrack remembers of a connection.
type translation struct {
	node           string
	oldSrc, newSrc netip.Addr
	oldDst, newDst netip.AddrPort
}

func (p *packet) hop(stage Stage, node, text string, objects ...Object) {
	p.hops = append(slices.Clip(p.hops), Hop{Node: node, Stage: stage, Text: text, Objects: objects})
}

func (p *packet) fits(mtu int) {
	if mtu > 0 && (p.mtu == 0 || mtu < p.mtu) {
		p.mtu = mtu
	}
}

func (t *traveller) start(q question) {
	t.client, t.target = q.from, netip.AddrPortFrom(q.addr, q.port)
	p := packet{at: q.from.Node, src: q.from.Addr, dst: t.target, asked: t.target, num: 1, den: 1, why: "unchanged"}
	own := t.plan(p.at)
	switch {
	case own == nil:
		t.unknown(p)
		return
	case q.from.Kind == "outside":
		p.hop(StageUnderlay, p.at, fmt.Sprintf("comes in from %s", p.src))
		p.fits(own.Underlay.MTU)
	case q.from.Kind == "node" || q.from.HostNetwork:
		p.local, p.src = true, t.localSource(own, t.target.Addr())
		p.hop(StageSend, p.at, fmt.Sprintf("a process of the node sends to %s", t.target))
	case slices.Contains(q.from.Addrs, q.addr):
		p.hop(StageArrive, p.at, "the address is the pod's own: the packet stays inside the pod")
		t.end(p, q.from)
		return
	case t.atSocket(p, own, q.from):
		return
	default:
		t.leavePod(&p, own)
	}
	t.enter(p)
}

// atSocket follows a connection that is translated at the pod's socket, and gives
// false for any other.
func (t *traveller) atSocket(p packet, own *plan.Plan, from End) bool {
	if t.Sockets[p.at] == nil {
		return false
	}
	c, is := t.choose(own, p.src, p.dst, false)
	if !is || !t.Sockets[p.at].Translates(p.src, t.protocol, c.result) {
		return false
	}
	c.Masquerade, c.AtSocket = "", true
	t.answer.Services = append(t.answer.Services, c)
	p.hop(StageService, p.at, c.sentence()+"; the pod's socket is connected to the endpoint from the start, and no packet is translated", c.Objects...)
	for _, b := range c.backends {
		next := p
		next.dst, next.asked, next.den = b, b, p.den*uint64(len(c.backends))
		if b.Addr() == p.src {
			next.hop(StageArrive, p.at, "the endpoint is the pod itself: the packet stays inside the pod")
			t.end(next, from)
			continue
		}
		t.leavePod(&next, own)
		t.enter(next)
	}
	return true
}

// leavePod takes a packet over the pod's pair of links to its node.
func (t *traveller) leavePod(p *packet, own *plan.Plan) {
	dev := podLink(own, p.src)
	p.by = cmp.Or(dev, link.Prefix)
	if dev == "" {
		p.hop(StagePod, p.at, fmt.Sprintf("the pod sends over its eth0; node %s has no link on record for %s", p.at, p.src))
		return
	}
	l := own.Link.Links[dev]
	p.fits(l.MTU)
	p.hop(StagePod, p.at, fmt.Sprintf("eth0 of %s to %s, the node's end of its pair, MTU %d", t.client.Name, dev, l.MTU), linkObject(own, dev)...)
}

func podLink(own *plan.Plan, a netip.Addr) string {
	for _, pod := range own.Pods {
		if slices.Contains(pod.Addrs, a) {
			return pod.Link
		}
	}
	return ""
}

// enter is the first thing at a node: the service rules, for a packet that comes
// in (prerouting) or that the node makes itself (output).
func (t *traveller) enter(p packet) {
	own := t.plan(p.at)
	p.nodes++
	switch {
	case own == nil:
		t.unknown(p)
		return
	case p.nodes > maxNodes:
		t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, Dropped, "the nodes send it in a circle")
		return
	}
	c, is := t.choose(own, p.src, p.dst, p.local)
	if !is {
		t.route(p, own)
		return
	}
	t.answer.Services = append(t.answer.Services, c)
	p.hop(StageService, p.at, c.sentence(), c.Objects...)
	if len(c.backends) == 0 {
		verdict, reason := c.refusal()
		t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, verdict, reason)
		return
	}
	for _, b := range c.backends {
		next := p
		next.dst, next.den = b, p.den*uint64(len(c.backends))
		next.masq = c.masquerades(b)
		next.nat = append(slices.Clip(p.nat), translation{p.at, p.src, p.src, p.dst, b})
		t.route(next, own)
	}
}

func (c *ServiceChoice) sentence() string {
	if c.result.Service == (cluster.Key{}) {
		return fmt.Sprintf("%s: %s", c.Frontend, c.Policy)
	}
	text := fmt.Sprintf("%s is Service %s (%s)", c.Frontend, c.Service, c.Kind)
	if c.PortName != "" {
		text += ", port " + c.PortName
	}
	switch n := len(c.backends); {
	case n == 1:
		return text + ": its one endpoint takes every connection"
	case n > 1:
		return fmt.Sprintf("%s: one of %d endpoints, each as likely", text, n)
	}
	return text + ": " + c.Policy
}

func (c *ServiceChoice) refusal() (Verdict, string) {
	if c.result.Verdict == proxy.Drop {
		return Dropped, fmt.Sprintf("%s: %s; nothing comes back", c.Frontend, c.Policy)
	}
	return Refused, fmt.Sprintf("Service %s: %s; refused at once, by the client's first node with these rules", c.Service, c.Policy)
}

// route is the routing decision at a node.
func (t *traveller) route(p packet, own *plan.Plan) {
	dst := p.dst.Addr()
	if t.isOwn(own, dst) {
		t.arriveAtNode(p, own)
		return
	}
	switch {
	case !p.local && !p.translatedAt() && t.fast(p.at, p.src, dst):
		p.hop(StageFast, p.at, fastText)
	case t.keptOut(p, own, false):
		return
	}
	key, r, ok := lookup(own.Link, dst)
	switch {
	case ok && r.Unreachable:
		p.hop(StageRoute, p.at, fmt.Sprintf("%s is in the node's pod CIDR %s, and no pod has it: ICMP host unreachable", dst, key.Dst), object(own, link.RouteObject{RouteKey: key, Route: r}))
		t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, Unreachable, fmt.Sprintf("no pod of node %s has the address %s", p.at, dst))
	case ok && !r.Via.IsValid():
		t.toPod(p, own, key, r)
	case ok && r.Dev == overlay.Device:
		t.tunnel(p, own, key, r)
	case ok:
		t.masquerade(&p, own, r.Dev, r.Via)
		objects := append(forwardingOf(own, &p), object(own, link.RouteObject{RouteKey: key, Route: r}))
		p.hop(StageRoute, p.at, fmt.Sprintf("%s is of node %s, on the same segment: by way of %s over %s", dst, orUnknownName(t.nodeOf(r.Via)), r.Via, r.Dev), objects...)
		t.underlay(p, own, r.Via)
	default:
		t.besides(p, own)
	}
}

func orUnknownName(n string) string {
	if n == "" {
		return "(unknown)"
	}
	return n
}

func forwardingOf(own *plan.Plan, p *packet) []Object {
	if p.local {
		return nil
	}
	return forwarding(own, p.dst.Addr().Is6())
}

// isOwn says that an address is the node's itself.
func (t *traveller) isOwn(own *plan.Plan, a netip.Addr) bool {
	if n := own.Snapshot.Nodes.Get(cluster.Key{Name: own.Node}); n != nil && slices.Contains(n.Addresses, a) {
		return true
	}
	for _, u := range own.Underlay.Addrs {
		if u.Addr() == a {
			return true
		}
	}
	for k := range own.Link.Addrs {
		if k.Prefix.Addr() == a {
			return true
		}
	}
	return false
}

// lookup finds the longest prefix of our routes.
func lookup(s *link.State, a netip.Addr) (key link.RouteKey, r link.Route, ok bool) {
	for k, v := range s.Routes {
		if k.Dst.Contains(a) && (!ok || k.Dst.Bits() > key.Dst.Bits()) {
			key, r, ok = k, v, true
		}
	}
	return key, r, ok
}

func (t *traveller) arriveAtNode(p packet, own *plan.Plan) {
	if p.local && p.masq != "" {
		t.masquerade(&p, own, "lo", p.dst.Addr())
	}
	if t.keptOut(p, own, true) {
		return
	}
	end := End{Kind: "node", Name: p.at, Node: p.at, Addr: p.dst.Addr()}
	if n := own.Snapshot.Nodes.Get(cluster.Key{Name: p.at}); n != nil {
		end.Addrs = n.Addresses
	}
	p.hop(StageArrive, p.at, fmt.Sprintf("%s is the node's own address: to the process that listens there", p.dst))
	t.end(p, end)
}

// toPod takes a packet to a pod of this node.
func (t *traveller) toPod(p packet, own *plan.Plan, key link.RouteKey, r link.Route) {
	t.masquerade(&p, own, r.Dev, p.dst.Addr())
	pod := t.podOfLink(p.at, r.Dev, p.dst.Addr())
	nk := link.NeighKey{Dev: r.Dev, Addr: p.dst.Addr()}
	objects := append(forwardingOf(own, &p), object(own, link.RouteObject{RouteKey: key, Route: r}))
	p.hop(StageRoute, p.at, fmt.Sprintf("%s is pod %s, on this node: over %s", p.dst.Addr(), pod, r.Dev), objects...)
	objects = linkObject(own, r.Dev)
	if mac, ok := own.Link.Neighs[nk]; ok {
		objects = append(objects, object(own, link.NeighObject{NeighKey: nk, MAC: mac}))
	}
	l := own.Link.Links[r.Dev]
	p.fits(l.MTU)
	p.hop(StagePod, p.at, fmt.Sprintf("%s to eth0 of %s, MTU %d", r.Dev, pod, l.MTU), objects...)
	end := End{Kind: "pod", Pod: pod, Name: pod.String(), Node: p.at, Addr: p.dst.Addr()}
	p.hop(StageArrive, p.at, fmt.Sprintf("to whatever listens on %s in %s", p.dst, pod))
	t.end(p, end)
}

// tunnel takes a packet through VXLAN to another node.
func (t *traveller) tunnel(p packet, own *plan.Plan, key link.RouteKey, r link.Route) {
	t.masquerade(&p, own, r.Dev, r.Via)
	objects := append(forwardingOf(own, &p), object(own, link.RouteObject{RouteKey: key, Route: r}))
	p.hop(StageRoute, p.at, fmt.Sprintf("%s is in %s of node %s: by way of %s over %s", p.dst.Addr(), key.Dst, orUnknownName(t.nodeOf(key.Dst.Addr())), r.Via, r.Dev), objects...)
	nk := link.NeighKey{Dev: r.Dev, Addr: r.Via}
	mac, known := own.Link.Neighs[nk]
	peer, mapped := own.Link.FDB[link.FDBKey{Dev: r.Dev, MAC: mac}]
	vtep := own.Link.Links[r.Dev]
	objects = linkObject(own, r.Dev)
	if known {
		objects = append(objects, object(own, link.NeighObject{NeighKey: nk, MAC: mac}))
	}
	if mapped {
		objects = append(objects, object(own, link.FDBObject{FDBKey: link.FDBKey{Dev: r.Dev, MAC: mac}, Dst: peer}))
	}
	p.fits(vtep.MTU)
	p.hop(StageTunnel, p.at, fmt.Sprintf("into VXLAN %d: %s has the MAC %s, which is at %s, UDP port %d; MTU %d", vtep.VXLAN.ID, r.Via, mac, peer, vtep.VXLAN.Port, vtep.MTU), objects...)
	if !mapped {
		t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, Dropped, fmt.Sprintf("the Plan of node %s has no VTEP for %s", p.at, r.Via))
		return
	}
	node := t.nodeOf(peer)
	p.hop(StageUnderlay, p.at, fmt.Sprintf("%s to %s over %s, MTU %d", vtep.VXLAN.Local, peer, own.Underlay.Device, own.Underlay.MTU))
	far := t.plan(node)
	if far == nil {
		p.at = node
		t.unknown(p)
		return
	}
	if t.unwrapped(p, own, far, vtep.VXLAN.Local) {
		return
	}
	if l, ok := far.Link.Links[overlay.Device]; ok {
		p.fits(l.MTU)
		p.hop(StageTunnel, node, fmt.Sprintf("out of VXLAN on %s", overlay.Device), linkObject(far, overlay.Device)...)
	}
	p.at, p.by, p.local = node, overlay.Device, false
	t.enter(p)
}

// underlay takes a packet to the node that has an address.
func (t *traveller) underlay(p packet, own *plan.Plan, via netip.Addr) {
	node := t.nodeOf(via)
	p.fits(own.Underlay.MTU)
	p.hop(StageUnderlay, p.at, fmt.Sprintf("to %s (node %s) over %s, MTU %d", via, orUnknownName(node), own.Underlay.Device, own.Underlay.MTU))
	if far := t.plan(node); far != nil {
		p.fits(far.Underlay.MTU)
	}
	p.at, p.by, p.local = node, "", false
	t.enter(p)
}

// besides is for addresses that the Plan has no route for: they are the
// underlay's, or the default route takes them.
func (t *traveller) besides(p packet, own *plan.Plan) {
	dst := p.dst.Addr()
	onLink := slices.ContainsFunc(own.Underlay.Addrs, func(u netip.Prefix) bool { return u.Contains(dst) })
	t.masquerade(&p, own, own.Underlay.Device, dst)
	how := "by the node's default route"
	if onLink {
		how = "directly, on the same segment"
	}
	if node := t.nodeWith(dst); node != "" {
		p.hop(StageRoute, p.at, fmt.Sprintf("%s is node %s's address: %s over %s", dst, node, how, own.Underlay.Device), forwardingOf(own, &p)...)
		t.underlay(p, own, dst)
		return
	}
	p.fits(own.Underlay.MTU)
	p.hop(StageRoute, p.at, fmt.Sprintf("%s is not the cluster's: %s over %s", dst, how, own.Underlay.Device), forwardingOf(own, &p)...)
	t.finish(p, End{Kind: "outside", Name: dst.String(), Addr: dst}, Leaves, fmt.Sprintf("%s is not of the cluster's network: the packet leaves node %s %s, with the source %s", dst, p.at, how, p.src))
}

// nodeWith gives the node that has an address itself.
func (t *traveller) nodeWith(a netip.Addr) string {
	for _, n := range t.Snapshot.Nodes.All() {
		if slices.Contains(n.Addresses, a) {
			return n.Name
		}
	}
	return ""
}

func (t *traveller) unknown(p packet) {
	t.finish(p, End{Kind: "node", Name: p.at, Node: p.at}, Unknown, fmt.Sprintf("the state of node %s is not known here: ask there", orUnknownName(p.at)))
}

// end is the arrival at a pod or node: what is left is the way back.
func (t *traveller) end(p packet, end End) {
	back := t.back(p, end)
	path := t.finish(p, end, back.verdict, back.reason)
	path.Back = back.hops
	if back.mtu > 0 && (path.MTU == 0 || back.mtu < path.MTU) {
		path.MTU = back.mtu
	}
}

func (t *traveller) finish(p packet, end End, v Verdict, reason string) *Path {
	path := &Path{
		To: p.dst, End: end, Source: p.src, SourceWhy: p.why, MTU: p.mtu,
		Forward: p.hops, Back: []Hop{}, Verdict: v, Reason: reason, num: p.num, den: p.den,
	}
	t.answer.Paths = append(t.answer.Paths, path)
	return path
}
