package peer

import (
	"fmt"
	"math/rand/v2"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Objects are requests that make the objects of a cluster.
type Objects struct {
	namespaces, rest, status []request
	// What the objects are called and reached at, to make questions of. Services are
	// "name.namespace".
	Namespaces, Services, Hosts, Addrs []string
	// Kinds says of each of Services whether it is a "cluster", "headless" or
	// "external" one; " publish" follows where it has addresses that are not ready.
	Kinds map[string]string
}

type request struct {
	method, path string
	object       any
}

func (o *Objects) namespace(name string) {
	o.Namespaces = append(o.Namespaces, name)
	o.namespaces = append(o.namespaces, request{http.MethodPost, "/api/v1/namespaces",
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}})
}

func (o *Objects) service(s *corev1.Service) {
	name, kind := s.Name+"."+s.Namespace, "cluster"
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		kind = "external"
	case s.Spec.ClusterIP == corev1.ClusterIPNone && s.Spec.PublishNotReadyAddresses:
		kind = "headless publish"
	case s.Spec.ClusterIP == corev1.ClusterIPNone:
		kind = "headless"
	case s.Spec.PublishNotReadyAddresses:
		kind = "cluster publish"
	}
	if o.Kinds == nil {
		o.Kinds = map[string]string{}
	}
	o.Services, o.Kinds[name] = append(o.Services, name), kind
	o.Addrs = append(o.Addrs, s.Spec.ClusterIPs...)
	o.rest = append(o.rest, request{http.MethodPost, "/api/v1/namespaces/" + s.Namespace + "/services", s})
}

func (o *Objects) slice(s *discoveryv1.EndpointSlice) {
	for _, e := range s.Endpoints {
		o.Addrs = append(o.Addrs, e.Addresses...)
		if e.Hostname != nil {
			o.Hosts = append(o.Hosts, *e.Hostname)
		}
	}
	o.rest = append(o.rest, request{http.MethodPost, "/apis/discovery.k8s.io/v1/namespaces/" + s.Namespace + "/endpointslices", s})
}

func (o *Objects) pod(ns, name string, ips ...string) {
	o.Addrs = append(o.Addrs, ips...)
	path := "/api/v1/namespaces/" + ns + "/pods"
	o.rest = append(o.rest, request{http.MethodPost, path, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns},
		Spec:       corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "c", Image: "i"}}}}})
	status := corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ips[0]}
	for _, ip := range ips {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: ip})
	}
	o.status = append(o.status, request{http.MethodPatch, path + "/" + name + "/status", map[string]any{"status": status}})
}

func meta(ns, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{}}
}

func ptr[T any](v T) *T { return &v }

// Many gives n Services in 100 namespaces, every tenth one headless, with ten
// endpoints each, as the endpoint slice controller would have made them.
func Many(n int) *Objects {
	o := &Objects{}
	for i := range 100 {
		o.namespace(fmt.Sprint("ns-", i))
	}
	for i := range n {
		s := &corev1.Service{ObjectMeta: meta(fmt.Sprint("ns-", i%100), fmt.Sprint("service-", i))}
		s.Spec.ClusterIP = fmt.Sprintf("10.96.%d.%d", 1+i/250, 1+i%250)
		if i%10 == 9 {
			s.Spec.ClusterIP = corev1.ClusterIPNone
		}
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
		s.Spec.Selector = map[string]string{"app": s.Name}
		s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}
		o.service(s)
		sl := o.controlled(s, "x", discoveryv1.AddressTypeIPv4)
		for e := range 10 {
			name := fmt.Sprintf("service-%d-7c9f8d6b5c-%05d", i, e)
			ep := discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+e, i>>8, i&255)},
				Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)},
				NodeName:   ptr(fmt.Sprint("node-", e)),
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: s.Namespace, Name: name}}
			if i%10 == 9 {
				ep.Hostname = ptr(fmt.Sprintf("service-%d-%d", i, e))
			}
			sl.Endpoints = append(sl.Endpoints, ep)
		}
		o.slice(sl)
	}
	return o
}

// controlled gives a slice with the labels that the controller gives it.
func (o *Objects) controlled(s *corev1.Service, suffix string, family discoveryv1.AddressType) *discoveryv1.EndpointSlice {
	sl := &discoveryv1.EndpointSlice{ObjectMeta: meta(s.Namespace, s.Name+"-"+suffix), AddressType: family}
	sl.Labels[discoveryv1.LabelServiceName] = s.Name
	sl.Labels[discoveryv1.LabelManagedBy] = "endpointslice-controller.k8s.io"
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		sl.Labels[corev1.IsHeadlessService] = ""
	}
	for _, p := range s.Spec.Ports {
		sl.Ports = append(sl.Ports, discoveryv1.EndpointPort{Name: ptr(p.Name), Port: ptr(p.Port), Protocol: ptr(p.Protocol)})
	}
	return sl
}

// Random gives a small cluster of everything that has a name.
func Random(r *rand.Rand) *Objects {
	o := &Objects{Hosts: []string{"web-0", "db-1"}}
	for i := range 4 {
		o.namespace(fmt.Sprint("ns", i))
	}
	for i := range 60 {
		s := randomService(r, fmt.Sprint("ns", r.IntN(3)), fmt.Sprint("svc", i), i)
		o.service(s)
		if s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		for n := range r.IntN(4) {
			o.slice(o.randomSlice(r, s, n))
		}
	}
	for i := range 20 {
		ips := []string{fmt.Sprint("10.200.0.", i+1)}
		if i%3 == 0 {
			ips = append(ips, fmt.Sprintf("fd00:200::%x", i+1))
		}
		o.pod(fmt.Sprint("ns", i%4), fmt.Sprint("pod", i), ips...)
	}
	return o
}

var external = []string{"www.example.com", "svc1.ns1.svc.cluster.local", "nothing.ns0.svc.cluster.local", "nx.example.com", "svc0.ns0.svc.cluster.local"}

func randomService(r *rand.Rand, ns, name string, i int) *corev1.Service {
	s := &corev1.Service{ObjectMeta: meta(ns, name)}
	s.Spec.PublishNotReadyAddresses = r.IntN(4) == 0
	v4, v6 := fmt.Sprintf("10.96.10.%d", i+1), fmt.Sprintf("fd00:96::%x", 0x100+i)
	switch r.IntN(8) {
	case 0:
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, external[r.IntN(len(external))]
		return s
	case 1, 2, 3:
		s.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = ptr(corev1.IPFamilyPolicyRequireDualStack), []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	case 4:
		s.Spec.ClusterIPs = []string{v6}
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	case 5, 6:
		s.Spec.ClusterIPs = []string{v4, v6}
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = ptr(corev1.IPFamilyPolicyRequireDualStack), []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	default:
		s.Spec.ClusterIPs = []string{v4}
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	for p, name := range []string{"http", "dns", "metrics"}[:1+r.IntN(3)] {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Port: int32(80 + 1000*p),
			Protocol: []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[r.IntN(3)]})
	}
	if len(s.Spec.Ports) == 1 && r.IntN(2) == 0 {
		s.Spec.Ports[0].Name = ""
	}
	return s
}

func (o *Objects) randomSlice(r *rand.Rand, s *corev1.Service, n int) *discoveryv1.EndpointSlice {
	family := discoveryv1.AddressTypeIPv4
	if r.IntN(3) == 0 {
		family = discoveryv1.AddressTypeIPv6
	}
	sl := o.controlled(s, fmt.Sprint("x", n), family)
	if r.IntN(4) == 0 { // made by hand: the labels of the controller are not there
		delete(sl.Labels, discoveryv1.LabelManagedBy)
		delete(sl.Labels, corev1.IsHeadlessService)
	}
	for range r.IntN(5) {
		addr := fmt.Sprintf("10.200.%d.%d", r.IntN(3), 1+r.IntN(250))
		if family == discoveryv1.AddressTypeIPv6 {
			addr = fmt.Sprintf("fd00:200:%x::%x", 1+r.IntN(3), 1+r.IntN(250))
		}
		e := discoveryv1.Endpoint{Addresses: []string{addr}}
		if r.IntN(3) == 0 {
			e.Conditions.Ready = ptr(r.IntN(2) == 0)
		}
		if r.IntN(2) == 0 {
			e.Hostname = ptr([]string{"web-0", "db-1", "x"}[r.IntN(3)])
		}
		sl.Endpoints = append(sl.Endpoints, e)
	}
	return sl
}
