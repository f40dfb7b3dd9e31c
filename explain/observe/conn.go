package observe

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/podlane/podlane/cluster"
)

// Connection is a tracked connection in the cluster's words.
type Connection struct {
	Node     string         `json:"node"` // whose conntrack has it
	Protocol string         `json:"protocol"`
	From     string         `json:"from"` // pod, node or address
	Source   netip.AddrPort `json:"source"`
	To       netip.AddrPort `json:"to"`                // as the client sent it
	Service  string         `json:"service,omitempty"` // whose frontend To is
	Went     netip.AddrPort `json:"went"`              // where it was sent on to
	Pod      string         `json:"pod"`               // which pod or node that is
	Seen     netip.Addr     `json:"seen"`              // the source that it sees
	// Since is when it began, where the kernel keeps that (sysctl
	// net.netfilter.nf_conntrack_timestamp).
	Since time.Time `json:"since,omitzero"`
}

func (c Connection) String() string {
	to := c.To.String()
	if c.Service != "" {
		to = "Service " + c.Service + " (" + to + ")"
	}
	text := fmt.Sprintf("%s %s (%s) to %s went to %s (%s)", c.Protocol, c.Source, c.From, to, c.Pod, c.Went)
	if c.Seen != c.Source.Addr() {
		text += fmt.Sprintf(", which sees the source %s", c.Seen)
	}
	if !c.Since.IsZero() {
		return text + " since " + c.Since.Format("15:04:05")
	}
	return text + "; since when is not kept (sysctl -w net.netfilter.nf_conntrack_timestamp=1 keeps it for new ones)"
}

// Owners knows which pod, node or Service an address of a cluster is of.
type Owners struct {
	pods     map[netip.Addr]string
	nodes    map[netip.Addr]string
	services map[netip.AddrPort]string
	// nodePorts are those of every node's addresses.
	nodePorts map[uint16]string
}

// OwnersIn reads them from the cluster's state.
func OwnersIn(s *cluster.Snapshot) *Owners {
	o := &Owners{map[netip.Addr]string{}, map[netip.Addr]string{}, map[netip.AddrPort]string{}, map[uint16]string{}}
	for k, p := range s.Pods.All() {
		for _, a := range p.IPs {
			if !p.HostNetwork && !p.Done {
				o.pods[a] = k.String()
			}
		}
	}
	for k, n := range s.Nodes.All() {
		for _, a := range n.Addresses {
			o.nodes[a] = "node " + k.Name
		}
		for _, cidr := range n.PodCIDRs {
			o.nodes[cidr.Masked().Addr().Next()] = "node " + k.Name
		}
	}
	for k, svc := range s.Services.All() {
		for _, p := range svc.Ports {
			for _, list := range [][]netip.Addr{svc.ClusterIPs, svc.ExternalIPs, svc.LoadBalancerIPs} {
				for _, a := range list {
					o.services[netip.AddrPortFrom(a, p.Port)] = k.String()
				}
			}
			if p.NodePort != 0 {
				o.nodePorts[p.NodePort] = k.String()
			}
		}
	}
	return o
}

// who names what has an address.
func (o *Owners) who(a netip.Addr) string {
	return cmp.Or(o.pods[a], o.nodes[a], a.String())
}

// serviceAt names the Service of a frontend.
func (o *Owners) serviceAt(a netip.AddrPort) string {
	if name := o.services[a]; name != "" || o.nodes[a.Addr()] == "" {
		return name
	}
	return o.nodePorts[a.Port()]
}

// Connections says what a node's flows are, of those that an address, or address
// and port, or a name is part of; with no match those that a Service's rules
// translated.
func (o *Owners) Connections(node string, flows []TimedFlow, match string) []Connection {
	var list []Connection
	for _, f := range flows {
		c := Connection{
			Node: node, Protocol: cluster.Protocol(f.Protocol).String(), From: o.who(f.Orig.Src.Addr()), Source: f.Orig.Src,
			To: f.Orig.Dst, Service: o.serviceAt(f.Orig.Dst), Went: f.Reply.Src, Pod: o.who(f.Reply.Src.Addr()), Seen: f.Reply.Dst.Addr(), Since: f.Since,
		}
		if match == "" && f.Orig.Dst != f.Reply.Src || match != "" && c.matches(match) {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Connection) int {
		return cmp.Or(a.Source.Compare(b.Source), a.To.Compare(b.To))
	})
	return list
}

func (c Connection) matches(text string) bool {
	for _, a := range []netip.AddrPort{c.Source, c.To, c.Went} {
		if a.String() == text || a.Addr().String() == text {
			return true
		}
	}
	return slices.Contains([]string{c.From, c.Pod, c.Service}, text) || c.From == "default/"+text || c.Pod == "default/"+text || c.Service == "default/"+text
}
