package overlay

import (
	"fmt"
	"net/netip"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
)

// Compile gives the own node's wanted state, and what of the input cannot be
// used, with the reason. A problem of one node or pod CIDR leaves the others as
// they are. The result depends on the input alone, not on any order in it.
func Compile(in Input) (link.State, []cluster.Problem) {
	b := NewBase(in)
	return b.With(in.Pods), b.Problems
}

type compiler struct {
	Input
	own      cidrs
	state    link.State
	problems []cluster.Problem
}

func (c *compiler) problem(n *cluster.Node, field, format string, args ...any) {
	c.problems = append(c.problems, nodeProblem(n.Key, field, fmt.Sprintf(format, args...)))
}

func (c *compiler) has(v6 bool) bool { return c.own.has(v6) }

// has tells whether the node has pods of a family.
func (c cidrs) has(v6 bool) bool {
	for _, p := range c.node.PodCIDRs {
		if p.Addr().Is6() == v6 {
			return true
		}
	}
	return false
}

// gateway is the own gateway of a family: the first pod CIDR's.
func (c *compiler) gateway(v6 bool) netip.Addr {
	for _, p := range c.own.pods {
		if p.Addr().Is6() == v6 {
			return Gateway(p)
		}
	}
	return netip.Addr{}
}

// unreachable answers for addresses of the own pod CIDRs that no pod has. By the
// default route the packets would leave the node, and could come back for ever.
func (c *compiler) unreachable() {
	for _, p := range c.own.pods {
		c.state.Routes[link.RouteKey{Dst: p}] = link.Route{Unreachable: true}
	}
}

func (c *compiler) forwarding() {
	if c.has(false) {
		c.state.Sysctls["net/ipv4/ip_forward"] = "1"
	}
	if !c.has(true) {
		return
	}
	c.state.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
	if c.Underlay.RARoute {
		c.state.Sysctls["net/ipv6/conf/"+c.Underlay.Device+"/accept_ra"] = "2"
	}
}

// linkSysctls are those of a link of ours. rp_filter 2 is the loose test, which
// stays loose where the whole machine's is strict: the larger of the two counts.
func linkSysctls(s link.State, own cidrs, dev string) {
	if own.has(false) {
		s.Sysctls["net/ipv4/conf/"+dev+"/forwarding"] = "1"
		s.Sysctls["net/ipv4/conf/"+dev+"/rp_filter"] = "2"
	}
	if own.has(true) {
		v6 := "net/ipv6/conf/" + dev + "/"
		s.Sysctls[v6+"accept_dad"] = "0"
		s.Sysctls[v6+"accept_ra"] = "0"
		s.Sysctls[v6+"disable_ipv6"] = "0"
		s.Sysctls[v6+"forwarding"] = "1"
	}
}

// vtep makes the own VTEP. It has the gateways' addresses, so that what the node
// itself sends to pods of other nodes has a source that they route back to it.
func (c *compiler) vtep() {
	v6 := c.underlay6()
	mtu := vtepMTU(c.Input)
	if mtu < 1280 && c.has(true) {
		c.problem(c.own.node, "", "%s has MTU %d, which leaves %d inside VXLAN: IPv6 needs 1280", c.Underlay.Device, c.Underlay.MTU, mtu)
	}
	c.state.Links[Device] = link.Link{
		Kind: link.VXLAN, MTU: mtu, MAC: VTEPMAC(c.Config.Cluster, c.Node),
		VXLAN: link.VXLANSpec{
			ID: c.Config.VNI, Port: c.Config.Port,
			Local: c.own.node.Address(v6), Device: c.Underlay.Device,
		},
		SoftChecksum: c.Probed != nil && c.Probed.SoftChecksum,
	}
	linkSysctls(c.state, c.own, Device)
	for _, p := range c.own.pods {
		c.addr(Device, Gateway(p))
		if c.probes() {
			c.addr(Device, ProbeAddr(p))
		}
	}
}

func (c *compiler) addr(dev string, a netip.Addr) {
	c.state.Addrs[link.Addr{Dev: dev, Prefix: netip.PrefixFrom(a, a.BitLen())}] = struct{}{}
}

// peer joins the pod CIDRs of another node, each by the way that its family and
// the mode allow.
func (c *compiler) peer(p cidrs) {
	for _, cidr := range p.pods {
		v6 := cidr.Addr().Is6()
		if !c.has(v6) {
			continue // nothing here could send or answer
		}
		via := p.node.Address(v6)
		switch {
		case c.Config.Mode == Auto && c.OnLink(via) && !c.Probed.trusts(Way{p.node.Name, v6}):
			c.tunnel(p.node, cidr)
			c.state.Routes[link.RouteKey{Dst: single(ProbeAddr(cidr))}] = link.Route{Via: via, Dev: c.Underlay.Device}
		case c.Config.Mode != VXLAN && c.OnLink(via):
			c.state.Routes[link.RouteKey{Dst: cidr}] = link.Route{Via: via, Dev: c.Underlay.Device}
		case c.Config.Mode == Direct:
			c.noDirect(p.node, cidr, via)
		default:
			c.tunnel(p.node, cidr)
		}
	}
}

func (c *compiler) noDirect(n *cluster.Node, cidr netip.Prefix, via netip.Addr) {
	if !via.IsValid() {
		c.problem(n, "status.addresses", "no %s InternalIP, and the direct route to %s needs one: add it, or use --overlay=auto", familyName(cidr.Addr().Is6()), cidr)
		return
	}
	c.problem(n, "status.addresses", "%s is not on the link of %s, so %s cannot be routed directly: use --overlay=auto or vxlan", via, c.Underlay.Device, cidr)
}

func familyName(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

// tunnel sends a pod CIDR through VXLAN. The next hop's neighbour entry is the
// peer's VTEP, so that neither ARP nor ND is ever sent.
func (c *compiler) tunnel(n *cluster.Node, cidr netip.Prefix) {
	outer6 := c.underlay6()
	to := n.Address(outer6)
	if !to.IsValid() {
		c.problem(n, "status.addresses", "no %s InternalIP, and this node's VXLAN runs over %[1]s: %s cannot be reached", familyName(outer6), cidr)
		return
	}
	mac := VTEPMAC(c.Config.Cluster, n.Name)
	via := nextHop(cidr, mac)
	c.state.FDB[link.FDBKey{Dev: Device, MAC: mac}] = to
	c.state.Neighs[link.NeighKey{Dev: Device, Addr: via}] = mac
	c.state.Routes[link.RouteKey{Dst: cidr}] = link.Route{
		Via: via, Dev: Device, Src: c.gateway(cidr.Addr().Is6()), OnLink: true,
	}
}

// nextHop names a peer's VTEP in a route: for IPv4 by the CIDR's first address,
// which no pod has; for IPv6 by the link-local address that belongs to the VTEP's
// MAC (RFC 4291, appendix A). The kernel refuses an IPv6 next hop to which it has
// a route over another link, and so would not let a direct route become a VXLAN
// one if that were an address of the CIDR.
func nextHop(cidr netip.Prefix, mac link.MAC) netip.Addr {
	if cidr.Addr().Is4() {
		return cidr.Addr()
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
