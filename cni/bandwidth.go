package cni

import (
	"errors"
	"fmt"

	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// Bandwidth is a pod's limits in bits a second and bits: the capability bandwidth of
// the CNI conventions, which runtimes fill from the annotations
// kubernetes.io/ingress-bandwidth and egress-bandwidth. Zero is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate"` // to the pod
	IngressBurst uint64 `json:"ingressBurst"`
	EgressRate   uint64 `json:"egressRate"` // from the pod
	EgressBurst  uint64 `json:"egressBurst"`
}

// Shapes gives what limits the packets to the pod and from it.
func (a Allocation) Shapes() (to, from link.Shape) {
	if a.Bandwidth == nil {
		return to, from
	}
	return shape(a.Bandwidth.IngressRate, a.Bandwidth.IngressBurst), shape(a.Bandwidth.EgressRate, a.Bandwidth.EgressBurst)
}

// leastBurst holds one packet of the longest kind, so that nothing is cut.
const leastBurst = 64 << 10

// shape bounds the burst to a tenth of a second: runtimes pass 512 MB where an
// annotation names none, with which a limit would begin after half a gigabyte.
func shape(rate, burst uint64) link.Shape {
	if rate == 0 {
		return link.Shape{}
	}
	bytes := max(rate/8, 1)
	return link.Shape{Rate: bytes, Burst: max(min(burst/8, bytes/10), leastBurst)}
}

// OnNode is the node's side of the pod, of which the overlay compiles its links.
func (a Allocation) OnNode() overlay.Pod {
	p := overlay.Pod{Link: a.Link, MAC: a.MAC, Addrs: a.Addrs, MTU: a.MTU}
	p.ToPod, p.FromPod = a.Shapes()
	return p
}

// limit makes what limits a new pod's bandwidth. Apply would make it too, with the links
// of all pods: made here, what the kernel lacks for it (CONFIG_IFB, CONFIG_NET_SCH_TBF)
// is an error of the pod that asks for it, and of no other.
func (p *Plugin) limit(a Allocation) error {
	if a.Bandwidth == nil {
		return nil
	}
	have, want := link.NewState(), link.NewState()
	have.Links[a.Link] = link.Link{Kind: link.Veth, MTU: a.MTU, MAC: a.HostMAC}
	want.Links = overlay.PodLinks(a.OnNode())
	if err := p.kernel.Apply(link.Diff(have, want)); err != nil {
		err = fmt.Errorf("the limit of its bandwidth cannot be kept: %w; without its annotations kubernetes.io/ingress-bandwidth and egress-bandwidth it starts", err)
		return errors.Join(err, p.unlink(overlay.Shaper(a.Link)))
	}
	return nil
}
