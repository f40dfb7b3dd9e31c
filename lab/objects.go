package lab

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
)

// Merge gives held with the objects of change added or put in place of those of
// their name; a Service keeps its cluster IPs where the new one names none.
func Merge(held, change *file.Objects) *file.Objects {
	out := Without(held, change)
	out.Nodes = append(out.Nodes, change.Nodes...)
	out.Namespaces = append(out.Namespaces, change.Namespaces...)
	out.Pods = append(out.Pods, change.Pods...)
	out.EndpointSlices = append(out.EndpointSlices, change.EndpointSlices...)
	out.Deployments = append(out.Deployments, change.Deployments...)
	out.ReplicationControllers = append(out.ReplicationControllers, change.ReplicationControllers...)
	before := byKey(held.Services)
	for _, s := range change.Services {
		was, is := before[objectKey(s)]
		if is && s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 && was.Spec.ClusterIP != corev1.ClusterIPNone {
			s = s.DeepCopy()
			s.Spec.ClusterIP, s.Spec.ClusterIPs = was.Spec.ClusterIP, was.Spec.ClusterIPs
		}
		out.Services = append(out.Services, s)
	}
	return out
}

// Without gives held without the objects of these kinds and names.
func Without(held, gone *file.Objects) *file.Objects {
	return &file.Objects{
		Nodes: without(held.Nodes, gone.Nodes), Namespaces: without(held.Namespaces, gone.Namespaces),
		Pods: without(held.Pods, gone.Pods), Services: without(held.Services, gone.Services),
		EndpointSlices: without(held.EndpointSlices, gone.EndpointSlices), Deployments: without(held.Deployments, gone.Deployments),
		ReplicationControllers: without(held.ReplicationControllers, gone.ReplicationControllers),
	}
}

func without[T metav1.Object](from, gone []T) []T {
	keys := byKey(gone)
	return slices.DeleteFunc(slices.Clone(from), func(o T) bool {
		_, is := keys[objectKey(o)]
		return is
	})
}

func byKey[T metav1.Object](objects []T) map[cluster.Key]T {
	all := make(map[cluster.Key]T, len(objects))
	for _, o := range objects {
		all[objectKey(o)] = o
	}
	return all
}

func objectKey(o metav1.Object) cluster.Key {
	return cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}
