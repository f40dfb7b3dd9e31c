package cni

import (
	"net/netip"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/hostport"
)

// PortMapping is a port of the node that leads to a pod: the capability
// portMappings of the CNI conventions.
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// HostPorts gives the allocation's ports of the node, one for each family that the
// pod has an address of. What is no port, protocol or address is left out.
func (a Allocation) HostPorts() []hostport.Port {
	var out []hostport.Port
	for _, m := range a.Ports {
		protocol, ok := protocols[strings.ToLower(m.Protocol)]
		host, err := netip.ParseAddr(m.HostIP)
		if !ok || err != nil && m.HostIP != "" || m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
			continue
		}
		for _, addr := range a.Addrs {
			if host.IsValid() && host.Is6() != addr.Is6() {
				continue
			}
			p := hostport.Port{Protocol: protocol, Pod: netip.AddrPortFrom(addr, uint16(m.ContainerPort)), Host: netip.AddrPortFrom(netip.Addr{}, uint16(m.HostPort))}
			if host.IsValid() && !host.IsUnspecified() {
				p.Host = netip.AddrPortFrom(host, uint16(m.HostPort))
			}
			out = append(out, p)
		}
	}
	return out
}

var protocols = map[string]cluster.Protocol{"": cluster.TCP, "tcp": cluster.TCP, "udp": cluster.UDP, "sctp": cluster.SCTP}
