package kube

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
)

// Kinds is a set of kinds of objects.
type Kinds uint8

// The kinds that can be followed.
const (
	Nodes Kinds = 1 << iota
	Namespaces
	// Pods are those of Options.Node.
	Pods
	// Services are those that a service proxy serves, with their endpoint slices:
	// neither headless ones nor those labelled for another proxy.
	Services
	// AllServices are Services and endpoint slices without these restrictions.
	AllServices
	// NamedServices are all Services, and the slices that have names: those of
	// headless Services, and those that the endpoint slice controller did not make,
	// which need not say what they are of.
	NamedServices
	// ServiceCIDRs are the ranges of cluster IPs. A server before Kubernetes 1.33 has
	// none, and a role may forbid them: then nothing is known of them.
	ServiceCIDRs

	// ForAgent is what the agent needs, ForDNS what the DNS server needs.
	ForAgent = Nodes | Pods | Services | ServiceCIDRs
	ForDNS   = Namespaces | NamedServices
)

// A label that is there at all makes its object leave the watch, so the server
// sends a deletion when it is added later (Kubernetes' own e2e tests do that).
const (
	notOfAnotherProxy = "!service.kubernetes.io/service-proxy-name"
	notHeadless       = "!service.kubernetes.io/headless"
	headless          = "service.kubernetes.io/headless"
	notOfController   = "endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io"
)

// kind says how one kind of objects is followed.
type kind struct {
	resource       string
	group          schema.GroupVersion
	example        runtime.Object
	labels, fields string // selectors
	// convert gives nil for an object that a Snapshot does not have.
	convert func(any) setter
	remove  func(*cluster.Builder, cluster.Key)
	// optional kinds are followed where the server gives them.
	optional bool
}

// setter puts one converted object into a Builder.
type setter interface{ set(*cluster.Builder) }

type (
	node      cluster.Node
	namespace cluster.Namespace
	pod       cluster.Pod
	service   cluster.Service
	slice     cluster.EndpointSlice
	cidr      cluster.ServiceCIDR
)

func (o *node) set(b *cluster.Builder)      { b.SetNode((*cluster.Node)(o)) }
func (o *namespace) set(b *cluster.Builder) { b.SetNamespace((*cluster.Namespace)(o)) }
func (o *pod) set(b *cluster.Builder)       { b.SetPod((*cluster.Pod)(o)) }
func (o *service) set(b *cluster.Builder)   { b.SetService((*cluster.Service)(o)) }
func (o *slice) set(b *cluster.Builder)     { b.SetSlice((*cluster.EndpointSlice)(o)) }
func (o *cidr) set(b *cluster.Builder)      { b.SetServiceCIDR((*cluster.ServiceCIDR)(o)) }

// kindsOf gives what is to be followed for a set of kinds.
func kindsOf(of Kinds, nodeName string) []kind {
	var out []kind
	if of&Nodes != 0 {
		out = append(out, nodeKind)
	}
	if of&Namespaces != 0 {
		out = append(out, namespaceKind)
	}
	if of&Pods != 0 {
		k := podKind
		if nodeName != "" {
			k.fields = fields.OneTermEqualSelector("spec.nodeName", nodeName).String()
		}
		out = append(out, k)
	}
	if of&ServiceCIDRs != 0 {
		out = append(out, cidrKind)
	}
	switch {
	case of&AllServices != 0:
		out = append(out, serviceKind, sliceKind)
	case of&NamedServices != 0:
		byLabel, byHand := sliceKind, sliceKind
		byLabel.labels, byHand.labels = headless, notHeadless+","+notOfController
		out = append(out, serviceKind, byLabel, byHand)
	case of&Services != 0:
		services, slices := serviceKind, sliceKind
		services.labels, services.fields = notOfAnotherProxy, "spec.clusterIP!=None"
		slices.labels = notHeadless
		out = append(out, services, slices)
	}
	return out
}

var nodeKind = kind{
	resource: "nodes", group: corev1.SchemeGroupVersion, example: &corev1.Node{},
	convert: func(o any) setter { return (*node)(convert.Node(o.(*corev1.Node))) },
	remove:  func(b *cluster.Builder, k cluster.Key) { b.DeleteNode(k.Name) },
}

var namespaceKind = kind{
	resource: "namespaces", group: corev1.SchemeGroupVersion, example: &corev1.Namespace{},
	convert: func(o any) setter { return (*namespace)(convert.Namespace(o.(*corev1.Namespace))) },
	remove:  func(b *cluster.Builder, k cluster.Key) { b.DeleteNamespace(k.Name) },
}

var podKind = kind{
	resource: "pods", group: corev1.SchemeGroupVersion, example: &corev1.Pod{},
	convert: func(o any) setter {
		if p := convert.Pod(o.(*corev1.Pod)); p != nil {
			return (*pod)(p)
		}
		return nil
	},
	remove: (*cluster.Builder).DeletePod,
}

var serviceKind = kind{
	resource: "services", group: corev1.SchemeGroupVersion, example: &corev1.Service{},
	convert: func(o any) setter { return (*service)(convert.Service(o.(*corev1.Service))) },
	remove:  (*cluster.Builder).DeleteService,
}

var sliceKind = kind{
	resource: "endpointslices", group: discoveryv1.SchemeGroupVersion, example: &discoveryv1.EndpointSlice{},
	convert: func(o any) setter {
		if s := convert.EndpointSlice(o.(*discoveryv1.EndpointSlice)); s != nil {
			return (*slice)(s)
		}
		return nil
	},
	remove: (*cluster.Builder).DeleteSlice,
}

var cidrKind = kind{
	resource: "servicecidrs", group: networkingv1.SchemeGroupVersion, example: &networkingv1.ServiceCIDR{}, optional: true,
	convert: func(o any) setter { return (*cidr)(convert.ServiceCIDR(o.(*networkingv1.ServiceCIDR))) },
	remove:  func(b *cluster.Builder, k cluster.Key) { b.DeleteServiceCIDR(k.Name) },
}

// selectors adds the kind's selectors to a request.
func (k *kind) selectors(o *metav1.ListOptions) {
	o.LabelSelector, o.FieldSelector = k.labels, k.fields
}
