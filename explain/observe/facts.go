// Package observe reads what the kernel of a node really has and says where that
// differs from a Plan; it watches what becomes of one connection. It changes
// nothing but for the short-lived table of a trace, and it repairs nothing: that
// is the agent's.
package observe

import (
	"net/netip"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// Facts are what a node's Plan depends on beside the cluster's Snapshot.
type Facts struct {
	Node     string         `json:"node"`
	Underlay link.Underlay  `json:"underlay"`
	Overlay  overlay.Config `json:"overlay"`
	Pods     []PodLink      `json:"pods"`
	// Probed is what the agent found out about the ways to other nodes.
	Probed *overlay.Probed `json:"probed,omitempty"`
	// Fast is what the node's fast path takes; nil where it has none, or that is not
	// known.
	Fast *FastPath `json:"fast,omitempty"`
	// Sockets are whose connections are translated at the socket; nil likewise.
	Sockets *ebpf.Clients `json:"sockets,omitempty"`
}

// FastPath is what a fast path takes: packets between these pods of the node, and
// between them and the pods of other nodes in these networks.
type FastPath struct {
	Pods  []netip.Addr   `json:"pods"`
	Peers []netip.Prefix `json:"peers"`
}

// State is the same in the words of overlay/fastpath.
func (f *FastPath) State() *fastpath.State {
	if f == nil {
		return nil
	}
	state := fastpath.NewState()
	for _, a := range f.Pods {
		state.Pods[a] = fastpath.Pod{}
	}
	for _, cidr := range f.Peers {
		state.Peers[cidr] = fastpath.Peer{}
	}
	return &state
}

// PodLink is one of the node's own pods, from its allocation record.
type PodLink struct {
	Pod   string       `json:"pod"` // "namespace/name"
	Link  string       `json:"link"`
	MAC   string       `json:"mac"`
	MTU   int          `json:"mtu"`
	Addrs []netip.Addr `json:"addrs"`
	// ToPod and FromPod limit the pod's bandwidth.
	ToPod   link.Shape `json:"toPod,omitzero"`
	FromPod link.Shape `json:"fromPod,omitzero"`
}

// FromRecord takes the facts from the allocation record on disk.
func FromRecord(node string, u link.Underlay, o overlay.Config, record []cni.Allocation) *Facts {
	f := &Facts{Node: node, Underlay: u, Overlay: o, Pods: []PodLink{}}
	for _, al := range record {
		l := PodLink{Pod: al.PodName(), Link: al.Link, MAC: al.MAC.String(), MTU: al.MTU, Addrs: al.Addrs}
		l.ToPod, l.FromPod = al.Shapes()
		f.Pods = append(f.Pods, l)
	}
	return f
}

// Plan compiles the node's Plan.
func (f *Facts) Plan(s *cluster.Snapshot) *plan.Plan { return plan.CompileAll(f.input(s)) }

// Links compiles the node's Plan without a Table.
func (f *Facts) Links(s *cluster.Snapshot) *plan.Plan { return plan.CompileLinks(f.input(s)) }

func (f *Facts) input(s *cluster.Snapshot) plan.Input {
	in := plan.Input{Node: f.Node, Overlay: f.Overlay, Underlay: f.Underlay, Snapshot: s, Probed: f.Probed}
	for _, p := range f.Pods {
		in.Pods = append(in.Pods, overlay.Pod{Link: p.Link, MAC: parseMAC(p.MAC), MTU: p.MTU, Addrs: p.Addrs, ToPod: p.ToPod, FromPod: p.FromPod})
	}
	return in
}

// Names are the pods of the node's links.
func (f *Facts) Names() map[string]cluster.Key {
	names := map[string]cluster.Key{}
	for _, p := range f.Pods {
		if ns, name, ok := strings.Cut(p.Pod, "/"); ok {
			names[p.Link] = cluster.Key{Namespace: ns, Name: name}
		}
	}
	return names
}

func parseMAC(text string) (m link.MAC) {
	for i := range m {
		if len(text) < 3*i+2 {
			return link.MAC{}
		}
		m[i] = unhex(text[3*i])<<4 | unhex(text[3*i+1])
	}
	return m
}

func unhex(c byte) byte {
	return byte(strings.IndexByte("0123456789abcdef", c) & 15)
}
