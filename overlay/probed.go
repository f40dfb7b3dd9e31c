package overlay

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podlane/podlane/kernel/link"
)

// Way is the direct way to another node's pods of a family.
type Way struct {
	Node string
	V6   bool
}

// MarshalText makes a Way a key of JSON.
func (w Way) MarshalText() ([]byte, error) {
	if w.V6 {
		return []byte("6 " + w.Node), nil
	}
	return []byte("4 " + w.Node), nil
}

// UnmarshalText reads what MarshalText writes.
func (w *Way) UnmarshalText(b []byte) error {
	family, node, ok := strings.Cut(string(b), " ")
	if !ok || family != "4" && family != "6" {
		return fmt.Errorf("way %q: want 4 NODE or 6 NODE", b)
	}
	*w = Way{Node: node, V6: family == "6"}
	return nil
}

// Probed is what probes found.
type Probed struct {
	// Direct are the ways on which packets with pods' addresses arrive. A fabric that
	// knows no pod network may drop them even where nodes are on one segment.
	Direct map[Way]bool `json:"direct"`
	// SoftChecksum says that VXLAN packets arrive only where the kernel, and not the
	// underlay's device, makes the inner checksums.
	SoftChecksum bool `json:"softChecksum,omitempty"`
}

func (p *Probed) trusts(w Way) bool { return p == nil || p.Direct[w] }

// Equal says whether two are the same.
func (p *Probed) Equal(o *Probed) bool {
	if p == nil || o == nil || p == o {
		return p == o
	}
	for w, is := range p.Direct {
		if o.Direct[w] != is {
			return false
		}
	}
	for w, is := range o.Direct {
		if p.Direct[w] != is {
			return false
		}
	}
	return p.SoftChecksum == o.SoftChecksum
}

// ProbeAddr is the address of a node by which the direct way to its pods is tried:
// the pod CIDR's own, which no pod has. While the way is not trusted it has a route
// of its own, so that trying takes no pod's packet along.
func ProbeAddr(podCIDR netip.Prefix) netip.Addr { return podCIDR.Masked().Addr() }

// probes says whether the node answers on its probe addresses.
func (c *compiler) probes() bool { return c.Config.Mode == Auto && c.Probed != nil }

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// OnLink tells whether a node is on the underlay's own L2 segment, as far as
// addresses say.
func (in Input) OnLink(a netip.Addr) bool {
	for _, p := range in.Underlay.Addrs {
		if p.Contains(a) && p.Addr() != a {
			return true
		}
	}
	return false
}

// allDirect says that no peer is behind VXLAN.
func (in Input) allDirect(peers []Peer) bool {
	if in.Config.withDefaults().Mode != Auto {
		return false
	}
	for _, p := range peers {
		for _, cidr := range p.PodCIDRs {
			v6 := cidr.Addr().Is6()
			if !in.OnLink(p.Node.Address(v6)) || !in.Probed.trusts(Way{p.Node.Name, v6}) {
				return false
			}
		}
	}
	return true
}

// TrustKernel gives what a restarted agent begins with: the direct routes that the
// kernel has were trusted before. The way checksums are made is taken over too, but
// may be a trial that was not ended: the agent has to confirm it.
func TrustKernel(in Input, have link.State) *Probed {
	p := &Probed{Direct: map[Way]bool{}, SoftChecksum: have.Links[Device].SoftChecksum}
	for _, peer := range Peers(in) {
		for _, cidr := range peer.PodCIDRs {
			if r, ok := have.Routes[link.RouteKey{Dst: cidr}]; ok && r.Dev == in.Underlay.Device && r.Dev != "" {
				p.Direct[Way{peer.Node.Name, cidr.Addr().Is6()}] = true
			}
		}
	}
	return p
}
