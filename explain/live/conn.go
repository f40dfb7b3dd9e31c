package live

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain/observe"
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

// Connections gives what the nodes' conntrack knows of connections that an
// address, or address and port, is part of; with no match all to Services. Each
// connection comes from the node that translated it.
func (c *Cluster) Connections(ctx context.Context, match string) ([]Connection, error) {
	var list []Connection
	for _, node := range c.NodeNames() {
		var flows []observe.TimedFlow
		if err := c.observe(ctx, "node/"+node, &flows, "flows"); err != nil {
			return nil, err
		}
		for _, f := range flows {
			conn := c.connection(node, f)
			translated := f.Orig.Dst != f.Reply.Src
			if match == "" && !translated || match != "" && !conn.matches(match) {
				continue
			}
			list = append(list, conn)
		}
	}
	slices.SortFunc(list, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), a.Source.Compare(b.Source), a.To.Compare(b.To))
	})
	return list, nil
}

func (c Connection) matches(text string) bool {
	for _, a := range []netip.AddrPort{c.Source, c.To, c.Went} {
		if a.String() == text || a.Addr().String() == text {
			return true
		}
	}
	return slices.Contains([]string{c.From, c.Pod, c.Service}, text) || c.From == "default/"+text || c.Pod == "default/"+text || c.Service == "default/"+text
}

func (c *Cluster) connection(node string, f observe.TimedFlow) Connection {
	return Connection{
		Node: node, Protocol: cluster.Protocol(f.Protocol).String(), From: c.who(f.Orig.Src.Addr()), Source: f.Orig.Src,
		To: f.Orig.Dst, Service: c.serviceAt(f.Orig.Dst), Went: f.Reply.Src, Pod: c.who(f.Reply.Src.Addr()), Seen: f.Reply.Dst.Addr(), Since: f.Since,
	}
}

// who names what has an address.
func (c *Cluster) who(a netip.Addr) string {
	for _, k := range c.Snapshot.Pods.Keys() {
		if p := c.Snapshot.Pods.Get(k); !p.HostNetwork && !p.Done && slices.Contains(p.IPs, a) {
			return k.String()
		}
	}
	for _, k := range c.Snapshot.Nodes.Keys() {
		n := c.Snapshot.Nodes.Get(k)
		if slices.Contains(n.Addresses, a) {
			return "node " + k.Name
		}
		for _, cidr := range n.PodCIDRs {
			if cidr.Contains(a) && cidr.Masked().Addr().Next() == a {
				return "node " + k.Name
			}
		}
	}
	return a.String()
}

// serviceAt names the Service of a frontend.
func (c *Cluster) serviceAt(a netip.AddrPort) string {
	for _, k := range c.Snapshot.Services.Keys() {
		s := c.Snapshot.Services.Get(k)
		for _, p := range s.Ports {
			at := append(append(slices.Clone(s.ClusterIPs), s.ExternalIPs...), s.LoadBalancerIPs...)
			if p.Port == a.Port() && slices.Contains(at, a.Addr()) || p.NodePort != 0 && p.NodePort == a.Port() && strings.HasPrefix(c.who(a.Addr()), "node ") {
				return k.String()
			}
		}
	}
	return ""
}
