package cni

import "github.com/podlane/podlane/kernel/link"

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
