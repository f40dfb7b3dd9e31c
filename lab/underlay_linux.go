package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// bridgeName is the underlay: a bridge in the holder's network namespace, which
// is the outside of the cluster's nodes and their default gateway.
const bridgeName = "underlay"

// underlay joins the nodes. Nodes whose addresses are in one /24 (IPv6: /64) are
// on one segment; between segments the outside routes.
type underlay struct {
	bridge   *netlink.Bridge
	gateways map[netip.Prefix]netip.Addr
}

func newUnderlay() (*underlay, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = bridgeName
	// A bridge without a set address takes the lowest of its ports', and so
	// changes it with every node.
	attrs.HardwareAddr = net.HardwareAddr{0x02, 'o', 'u', 't', 0, 1}
	snooping := false
	u := &underlay{&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}, map[netip.Prefix]netip.Addr{}}
	if err := netlink.LinkAdd(u.bridge); err != nil {
		return nil, fmt.Errorf("make the bridge %s: %w", bridgeName, err)
	}
	u.sysctls()
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	return u, netlink.LinkSetUp(u.bridge)
}

// sysctls has the outside forward between segments and keeps the bridge out of
// its packet filter. A kernel that lacks one of them does not need it.
func (u *underlay) sysctls() {
	for path, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/conf/all/send_redirects": "0", "ipv4/conf/" + bridgeName + "/send_redirects": "0",
		"bridge/bridge-nf-call-iptables": "0", "bridge/bridge-nf-call-ip6tables": "0", "bridge/bridge-nf-call-arptables": "0",
	} {
		_ = os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
	}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// segment gives the underlay's prefix of a node's address, and the outside's
// address in it: the last but one of the prefix's first 256.
func segment(a netip.Addr) (prefix netip.Prefix, gateway netip.Addr) {
	if a.Is4() {
		prefix = netip.PrefixFrom(a, 24).Masked()
		raw := prefix.Addr().As4()
		raw[3] = 254
		return prefix, netip.AddrFrom4(raw)
	}
	prefix = netip.PrefixFrom(a, 64).Masked()
	raw := prefix.Addr().As16()
	raw[15] = 254
	return prefix, netip.AddrFrom16(raw)
}

// join makes a node's eth0 on the underlay, with its addresses and the default
// routes. port names the other end.
func (u *underlay) join(node *space, port string, addrs []netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = port, u.bridge.Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(node.net.Fd())}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make the link %s: %w", port, err)
	}
	if err := netlink.LinkSetUp(veth); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := u.open(a); err != nil {
			return err
		}
	}
	return node.run(func() error { return addressNode(addrs) })
}

// leave takes a node's link away at once; the kernel would do so some time after
// the end of the namespace.
func (u *underlay) leave(port string) {
	if l, err := netlink.LinkByName(port); err == nil {
		_ = netlink.LinkDel(l)
	}
}

// open gives the outside its address in the segment of a.
func (u *underlay) open(a netip.Addr) error {
	prefix, gateway := segment(a)
	if u.gateways[prefix] == gateway {
		return nil
	}
	if err := addAddress(u.bridge, netip.PrefixFrom(gateway, prefix.Bits())); err != nil {
		return err
	}
	u.gateways[prefix] = gateway
	return nil
}

// route has the outside send to a node's pods by way of the node.
func (u *underlay) route(pods netip.Prefix, node netip.Addr) error {
	return netlink.RouteReplace(&netlink.Route{LinkIndex: u.bridge.Index, Dst: ipNet(pods), Gw: node.AsSlice()})
}

// addressNode is run in a node's network namespace.
func addressNode(addrs []netip.Addr) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	// As with the addresses below; without a tested link-local address a node asks
	// for no neighbour on behalf of a pod.
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/eth0/accept_dad", []byte("0"), 0)
	if err := netlink.LinkSetUp(eth0); err != nil {
		return err
	}
	hasDefault := map[bool]bool{}
	for _, a := range addrs {
		prefix, gateway := segment(a)
		if err := addAddress(eth0, netip.PrefixFrom(a, prefix.Bits())); err != nil {
			return err
		}
		if hasDefault[a.Is6()] {
			continue
		}
		hasDefault[a.Is6()] = true
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: gateway.AsSlice()}); err != nil {
			return fmt.Errorf("default route by way of %s: %w", gateway, err)
		}
	}
	return nil
}

// readdressNode puts addresses in place of those that the node has; it is run in
// its network namespace.
func readdressNode(addrs []netip.Addr) error {
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	old, err := netlink.AddrList(eth0, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	added := addrs
	for _, a := range old {
		have, _ := netip.AddrFromSlice(a.IP)
		have = have.Unmap()
		if slices.Contains(addrs, have) {
			added = slices.DeleteFunc(slices.Clone(added), func(a netip.Addr) bool { return a == have })
			continue
		}
		if have.IsLinkLocalUnicast() {
			continue
		}
		if err := netlink.AddrDel(eth0, &a); err != nil {
			return fmt.Errorf("remove %s from eth0: %w", have, err)
		}
		if err := dropDefault(eth0, have.Is6()); err != nil {
			return err
		}
	}
	return addressNode(added)
}

// dropDefault removes the default route of a family, whose gateway may not be
// that of the new address.
func dropDefault(dev netlink.Link, v6 bool) error {
	family := map[bool]int{false: netlink.FAMILY_V4, true: netlink.FAMILY_V6}[v6]
	routes, err := netlink.RouteList(dev, family)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if !isDefault(r) {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil {
			return fmt.Errorf("remove the default route by way of %s: %w", r.Gw, err)
		}
	}
	return nil
}

func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// addAddress adds an address without the one to two seconds that the kernel
// tests a new IPv6 address for duplicates.
func addAddress(dev netlink.Link, p netip.Prefix) error {
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(dev, addr); err != nil {
		return fmt.Errorf("address %s on %s: %w", p, dev.Attrs().Name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Outside gives the outside's address in the segment of a node's address.
func Outside(node netip.Addr) netip.Addr {
	_, gateway := segment(node)
	return gateway
}
