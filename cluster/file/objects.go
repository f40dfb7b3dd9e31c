// Package file reads plain Kubernetes YAML from a folder or a file, once (Read) or
// following its changes (Source), and makes Snapshots of it. It applies no
// admission, allocates nothing and places no pod: what the text does not say is
// not there.
package file

import (
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
)

// Objects are the objects read, each kind in the order of the text: files by
// name, then by their order in the file. No object is there twice.
type Objects struct {
	Nodes                  []*corev1.Node
	Namespaces             []*corev1.Namespace
	Pods                   []*corev1.Pod
	Services               []*corev1.Service
	EndpointSlices         []*discoveryv1.EndpointSlice
	ServiceCIDRs           []*networkingv1.ServiceCIDR
	Deployments            []*appsv1.Deployment
	ReplicationControllers []*corev1.ReplicationController
	// Unknown has the kinds that are not read, with the number of their objects.
	Unknown map[string]int
}

// Warning names the kinds that are not read in one line, or is "".
func (o *Objects) Warning() string { return warning(o.Unknown) }

func warning(unknown map[string]int) string {
	if len(unknown) == 0 {
		return ""
	}
	var names []string
	for kind, n := range unknown {
		names = append(names, fmt.Sprintf("%s (%d)", kind, n))
	}
	slices.Sort(names)
	return "kinds that Podlane does not use: " + strings.Join(names, ", ")
}

func (o *Objects) add(object metav1.Object) {
	switch v := object.(type) {
	case *corev1.Node:
		o.Nodes = append(o.Nodes, v)
	case *corev1.Namespace:
		o.Namespaces = append(o.Namespaces, v)
	case *corev1.Pod:
		o.Pods = append(o.Pods, v)
	case *corev1.Service:
		o.Services = append(o.Services, v)
	case *discoveryv1.EndpointSlice:
		o.EndpointSlices = append(o.EndpointSlices, v)
	case *networkingv1.ServiceCIDR:
		o.ServiceCIDRs = append(o.ServiceCIDRs, v)
	case *appsv1.Deployment:
		o.Deployments = append(o.Deployments, v)
	case *corev1.ReplicationController:
		o.ReplicationControllers = append(o.ReplicationControllers, v)
	}
}

// Snapshot gives the objects as a Snapshot. With a node's name, of the pods those
// of that node only.
func (o *Objects) Snapshot(node string) *cluster.Snapshot {
	b := cluster.NewBuilder()
	setAll(b, o.Nodes, node)
	setAll(b, o.Namespaces, node)
	setAll(b, o.Pods, node)
	setAll(b, o.Services, node)
	setAll(b, o.EndpointSlices, node)
	setAll(b, o.ServiceCIDRs, node)
	return b.Publish()
}

func setAll[T metav1.Object](b *cluster.Builder, of []T, node string) {
	for _, o := range of {
		set(b, o, node)
	}
}

// set brings one object into a Builder. An object that a Snapshot does not have
// (an unplaced pod, a slice without a Service) takes its older version away.
func set(b *cluster.Builder, object metav1.Object, node string) {
	k := cluster.Key{Namespace: object.GetNamespace(), Name: object.GetName()}
	switch v := object.(type) {
	case *corev1.Node:
		b.SetNode(convert.Node(v))
	case *corev1.Namespace:
		b.SetNamespace(convert.Namespace(v))
	case *corev1.Pod:
		if p := convert.Pod(v); p != nil && (node == "" || p.Node == node) {
			b.SetPod(p)
		} else {
			b.DeletePod(k)
		}
	case *corev1.Service:
		b.SetService(convert.Service(v))
	case *discoveryv1.EndpointSlice:
		if s := convert.EndpointSlice(v); s != nil {
			b.SetSlice(s)
		} else {
			b.DeleteSlice(k)
		}
	case *networkingv1.ServiceCIDR:
		b.SetServiceCIDR(convert.ServiceCIDR(v))
	}
}

func unset(b *cluster.Builder, r ref) {
	switch r.kind {
	case "Node":
		b.DeleteNode(r.key.Name)
	case "Namespace":
		b.DeleteNamespace(r.key.Name)
	case "Pod":
		b.DeletePod(r.key)
	case "Service":
		b.DeleteService(r.key)
	case "EndpointSlice":
		b.DeleteSlice(r.key)
	case "ServiceCIDR":
		b.DeleteServiceCIDR(r.key.Name)
	}
}
