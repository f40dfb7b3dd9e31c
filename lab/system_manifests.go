package lab

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab/control"
)

// WithSystem adds to objects what a lab would add: two nodes where there is none,
// and where there is no Service of the cluster's DNS, that Service with a DNS
// server on each node. It is for looking at manifests with no lab.
func WithSystem(config control.Config, objects *file.Objects) *file.Objects {
	out := *objects
	if len(out.Nodes) == 0 {
		out.Nodes = control.Nodes(2)
	}
	own := dnsService(config)
	if slices.ContainsFunc(out.Services, func(s *corev1.Service) bool { return objectKey(s) == objectKey(own) }) {
		return &out
	}
	out.Services = append(slices.Clone(out.Services), own)
	return withDNSPods(&out)
}
