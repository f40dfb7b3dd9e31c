package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/nftables"
)

// ObjectID names an object of package link among those of its node.
func ObjectID(o link.Object) string {
	switch o := o.(type) {
	case link.LinkObject:
		return "link " + o.Name
	case link.Addr:
		return fmt.Sprintf("addr %s %s", o.Dev, o.Prefix)
	case link.NeighObject:
		return fmt.Sprintf("neigh %s %s", o.Dev, o.Addr)
	case link.FDBObject:
		return fmt.Sprintf("fdb %s %s", o.Dev, o.MAC)
	case link.RouteObject:
		return fmt.Sprintf("route %s", o.Dst)
	case link.SysctlObject:
		return "sysctl " + o.Path
	}
	return fmt.Sprint(o)
}

// FrontendID names the elements that a frontend has in one of the service maps:
// "services" or "endpoints" for an address, "nodeports" or "nodeport-endpoints"
// for a NodePort, whose address is unspecified.
func FrontendID(set string, p cluster.Protocol, a netip.AddrPort) string {
	return fmt.Sprintf("nft %s %s %s", nft.FamilyOf(a.Addr().Is6()), set, frontendKey(p, a))
}

// frontendKey is the key of a frontend in nft's words.
func frontendKey(p cluster.Protocol, a netip.AddrPort) string {
	port := fmt.Sprintf("%s . %d", strings.ToLower(p.String()), a.Port())
	if a.Addr().IsUnspecified() {
		return port
	}
	return a.Addr().String() + " . " + port
}

// object gives an object of a Plan's link state, in the words of its text.
func object(p *plan.Plan, o link.Object) Object {
	s := link.NewState()
	look := "ip"
	switch o := o.(type) {
	case link.LinkObject:
		s.Links[o.Name] = o.Link
		look = "ip -d link show " + o.Name
	case link.Addr:
		s.Addrs[o] = struct{}{}
		look = "ip address show dev " + o.Dev
	case link.NeighObject:
		s.Neighs[o.NeighKey] = o.MAC
		look = fmt.Sprintf("ip neigh show %s dev %s", o.Addr, o.Dev)
	case link.FDBObject:
		s.FDB[o.FDBKey] = o.Dst
		look = "bridge fdb show dev " + o.Dev
	case link.RouteObject:
		s.Routes[o.RouteKey] = o.Route
		look = fmt.Sprintf("ip route show %s", o.Dst)
	case link.SysctlObject:
		s.Sysctls[o.Path] = o.Value
		look = "sysctl " + strings.ReplaceAll(o.Path, "/", ".")
	}
	return Object{ID: ObjectID(o), Node: p.Node, Text: strings.TrimSpace(s.String()), Look: look}
}

func linkObject(p *plan.Plan, name string) []Object {
	l, ok := p.Link.Links[name]
	if !ok {
		return nil
	}
	return []Object{object(p, link.LinkObject{Name: name, Link: l})}
}

// forwarding gives the sysctl that lets a node forward a family.
func forwarding(p *plan.Plan, v6 bool) []Object {
	path := "net/ipv4/ip_forward"
	if v6 {
		path = "net/ipv6/conf/all/forwarding"
	}
	value, ok := p.Link.Sysctls[path]
	if !ok {
		return nil
	}
	return []Object{object(p, link.SysctlObject{Path: path, Value: value})}
}

// serviceObjects are the elements that decide: the frontend's, which counts new
// connections, and the slots of its endpoints.
func serviceObjects(node string, proto cluster.Protocol, c *ServiceChoice) []Object {
	front := c.result.Frontend.Addr
	if !front.IsValid() {
		return refusalObject(node, c)
	}
	r := nftables.NewRuleset(nft.FamilyOf(front.Addr().Is6()), nftables.Names[0])
	services, endpoints := r.Services, r.Endpoints
	if front.Addr().IsUnspecified() {
		services, endpoints = r.NodePorts, r.NodePortEndpoints
	}
	key := frontendKey(proto, front)
	objects := []Object{{
		ID: FrontendID(services.Name, proto, front), Node: node,
		Text: fmt.Sprintf("nft map %s { %s } of %s", services, key, c.Service),
		Look: fmt.Sprintf("nft get element %s '{ %s }'", services, key),
	}}
	if len(c.backends) == 0 || c.result.Affinity {
		return objects
	}
	var slots []string
	for _, b := range c.backends {
		slots = append(slots, b.String())
	}
	return append(objects, Object{
		ID: FrontendID(endpoints.Name, proto, front), Node: node,
		Text: fmt.Sprintf("nft map %s { %s . slot } : %s", endpoints, key, strings.Join(slots, ", ")),
		Look: fmt.Sprintf("nft get element %s '{ %s . 0 }'", endpoints, key),
	})
}

// refusalObject is what refuses or drops packets to what is no frontend.
func refusalObject(node string, c *ServiceChoice) []Object {
	r := nftables.NewRuleset(nft.FamilyOf(c.Frontend.Addr().Is6()), nftables.Names[0])
	return []Object{{
		ID: fmt.Sprintf("nft %s %s %s", r.Table.Family, r.ClusterIPs.Name, c.Frontend.Addr()), Node: node,
		Text: fmt.Sprintf("nft chain %s dispatch, the rules with @%s and the Service CIDRs", r.Table, r.ClusterIPs.Name),
		Look: fmt.Sprintf("nft list chain %s dispatch", r.Table),
	}}
}

func masqueradeObject(node string, v6 bool, hairpin bool) Object {
	r := nftables.NewRuleset(nft.FamilyOf(v6), nftables.Names[0])
	rule := "the rule with ct status dnat and masquerade"
	if hairpin {
		rule = fmt.Sprintf("the rule with @%s and masquerade", r.Hairpin.Name)
	}
	return Object{
		ID: fmt.Sprintf("nft %s chain nat-postrouting", r.Table.Family), Node: node,
		Text: fmt.Sprintf("nft chain %s nat-postrouting, %s", r.Table, rule),
		Look: fmt.Sprintf("nft list chain %s nat-postrouting", r.Table),
	}
}
