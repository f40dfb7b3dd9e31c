package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/podlane/podlane/cni/shim"
)

// The indexes of Result's interfaces.
const (
	hostInterface = iota
	podInterface
)

// Result is what ADD answers: both ends of the pair, an address with its gateway
// for each family, and the default routes. An address has the length of a single
// one (/32, /128): there is no other pod on the pod's link.
func (a Allocation) Result() *types100.Result {
	result := &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			hostInterface: {Name: a.Link, Mac: a.HostMAC.String(), Mtu: a.MTU},
			podInterface:  {Name: a.IfName, Mac: a.MAC.String(), Mtu: a.MTU, Sandbox: a.Netns},
		},
	}
	for i, addr := range a.Addrs {
		result.IPs = append(result.IPs, &types100.IPConfig{
			Interface: types100.Int(podInterface),
			Address:   ipNet(netip.PrefixFrom(addr, addr.BitLen())),
			Gateway:   net.IP(a.Gateways[i].AsSlice()),
		})
		all := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		if addr.Is4() {
			all = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		result.Routes = append(result.Routes, &types.Route{Dst: ipNet(all), GW: net.IP(a.Gateways[i].AsSlice())})
	}
	return result
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// finish makes the result in the words of the configuration's version.
func (c *call) finish() error {
	result, err := c.alloc.Result().GetAsVersion(c.conf.CNIVersion)
	if err != nil {
		return fmt.Errorf("result for cniVersion %s: %w", c.conf.CNIVersion, err)
	}
	c.result, err = json.Marshal(result)
	return err
}

// check is CHECK: the record, what the runtime remembers, and the kernel agree.
func (p *Plugin) check(c *call) error {
	a, ok := p.record.Get(c.key())
	if !ok || p.leaving[c.key()] || a.BootID != p.config.BootID {
		return &shim.Error{Code: shim.CodeUnknownContainer, Msg: fmt.Sprintf("no allocation on record for %s", c.key())}
	}
	c.alloc = a
	if c.req.SocketFD < 0 {
		return &shim.Error{Code: shim.CodeEnvironment, Msg: "CHECK without descriptors of the pod's network namespace"}
	}
	if err := c.agrees(); err != nil {
		return fmt.Errorf("pod %s: prevResult: %w", a.PodName(), err)
	}
	if err := p.kernel.CheckPod(a.spec(), c.req.SocketFD); err != nil {
		return fmt.Errorf("pod %s: %w", a.PodName(), err)
	}
	return nil
}

// agrees compares the result of the earlier ADD with the record. What later
// plugins of the chain added to it is not ours to judge.
func (c *call) agrees() error {
	if len(c.conf.PrevResult) == 0 {
		return &shim.Error{Code: shim.CodeConfig, Msg: `network configuration lacks "prevResult"`}
	}
	raw, err := version.NewResult(c.conf.CNIVersion, c.conf.PrevResult)
	if err != nil {
		return err
	}
	prev, err := types100.NewResultFromResult(raw)
	if err != nil {
		return err
	}
	for _, want := range c.alloc.Result().Interfaces {
		if !hasInterface(prev.Interfaces, want) {
			return fmt.Errorf("interface %s with MAC %s is on record and not there", want.Name, want.Mac)
		}
	}
	for _, want := range c.alloc.Addrs {
		if !hasAddr(prev.IPs, want) {
			return fmt.Errorf("address %s is on record and not there", want)
		}
	}
	return nil
}

func hasInterface(have []*types100.Interface, want *types100.Interface) bool {
	for _, h := range have {
		if h.Name == want.Name && h.Mac == want.Mac && h.Sandbox == want.Sandbox {
			return true
		}
	}
	return false
}

func hasAddr(have []*types100.IPConfig, want netip.Addr) bool {
	for _, h := range have {
		if a, ok := netip.AddrFromSlice(h.Address.IP); ok && a.Unmap() == want {
			return true
		}
	}
	return false
}
