package node

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Objects of a cluster of one node, as its API server and controllers would make
// them.

// NodeObject is the node's own object.
func NodeObject() *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: Name, UID: "n1"},
		Spec:   corev1.NodeSpec{PodCIDR: "10.244.0.0/24", PodCIDRs: []string{"10.244.0.0/24"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: Addr}, {Type: corev1.NodeHostName, Address: Name}}}}
}

// ServiceCIDR is the range of the cluster IPs.
func ServiceCIDR() *networkingv1.ServiceCIDR {
	return &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/12"}}}
}

// ServiceName and ClusterIP are those of the i-th Service.
func ServiceName(i int) string { return fmt.Sprintf("svc-%05d", i) }

// ClusterIP is its address.
func ClusterIP(i int) string { return fmt.Sprintf("10.%d.%d.%d", 97+i>>16, i>>8&255, i&255) }

// Service is the i-th Service: one TCP port, 80.
func Service(i int) *corev1.Service {
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: ServiceName(i), UID: types.UID(fmt.Sprintf("0b4a7d0e-0000-4000-8000-%012d", i)),
			CreationTimestamp: metav1.NewTime(time.Unix(1700000000, 0)), Labels: map[string]string{"app": ServiceName(i)}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ClusterIP(i), ClusterIPs: []string{ClusterIP(i)},
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single, InternalTrafficPolicy: &cluster,
			SessionAffinity: corev1.ServiceAffinityNone, Selector: map[string]string{"app": ServiceName(i)},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(8080)}}},
	}
}

// Endpoints are the addresses of the i-th Service's first n endpoints, on other
// nodes.
func Endpoints(i, n int) []string {
	var out []string
	for e := range n {
		id := i*n + e
		out = append(out, fmt.Sprintf("10.%d.%d.%d", 128+id>>16, id>>8&255, id&255))
	}
	return out
}

// Slice is the slice of a Service with these endpoints.
func Slice(service string, addrs []string) *discoveryv1.EndpointSlice {
	yes, no := true, false
	port, protocol, name := int32(8080), corev1.ProtocolTCP, "http"
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-abcde", UID: types.UID("slice-" + service),
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339Nano)},
			Labels:      map[string]string{discoveryv1.LabelServiceName: service, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for i, a := range addrs {
		on := fmt.Sprintf("n%d", 2+i%5)
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}, NodeName: &on,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-5d8f9c7b6-%05d", service, i)}})
	}
	return s
}

// Fill gives the node's API so many Services with so many endpoints each.
func (n *Node) Fill(services, endpoints int) {
	n.API.Set("nodes", NodeObject())
	n.API.Set("servicecidrs", ServiceCIDR())
	for i := range services {
		n.API.Set("services", Service(i))
		n.API.Set("endpointslices", Slice(ServiceName(i), Endpoints(i, endpoints)))
	}
}
