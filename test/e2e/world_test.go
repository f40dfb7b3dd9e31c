package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster/file"
)

// allow lets a user list and watch resources.
func (a *api) allow(user string, resources ...string) {
	a.t.Helper()
	ctx, meta := context.Background(), metav1.ObjectMeta{Name: user + "-" + resources[0]}
	_, err := a.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{"", "discovery.k8s.io"}, Resources: resources, Verbs: []string{"list", "watch"}}}}, metav1.CreateOptions{})
	if err != nil {
		a.t.Fatal(err)
	}
	_, err = a.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: meta,
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}}}, metav1.CreateOptions{})
	if err != nil {
		a.t.Fatal(err)
	}
}

// world has the objects that should be there, and brings each change of them to
// the API and to the folder: one file for each kind.
type world struct {
	*api
	dir      string
	r        *rand.Rand
	nodes    map[string]*corev1.Node
	pods     map[string]*corev1.Pod
	services map[string]*corev1.Service
	slices   map[string]*discoveryv1.EndpointSlice
}

func newWorld(a *api, dir string, r *rand.Rand) *world {
	return &world{a, dir, r, map[string]*corev1.Node{}, map[string]*corev1.Pod{}, map[string]*corev1.Service{}, map[string]*discoveryv1.EndpointSlice{}}
}

// change makes n random changes.
func (w *world) change(n int) {
	w.t.Helper()
	for range n {
		switch i := w.r.IntN(6); w.r.IntN(7) {
		case 0:
			o := w.node(i)
			step(w, w.nodes, o, o.DeepCopy, w.CoreV1().Nodes())
		case 1:
			o := w.pod(i)
			step(w, w.pods, o, o.DeepCopy, w.CoreV1().Pods("default"))
		case 2, 3:
			o := w.service(i)
			step(w, w.services, o, o.DeepCopy, w.CoreV1().Services("default"))
		default:
			o := w.slice(i)
			step(w, w.slices, o, o.DeepCopy, w.DiscoveryV1().EndpointSlices("default"))
		}
		if w.r.IntN(3) == 0 {
			w.write()
		}
	}
	w.write()
}

// step deletes or puts one object. What is kept is a copy of its own, since put
// writes to what it is given.
func step[T metav1.Object](w *world, have map[string]T, o T, again func() T, r resource[T]) {
	w.t.Helper()
	if w.r.IntN(4) == 0 {
		delete(have, o.GetName())
		remove(w.t, r, o.GetName())
		return
	}
	have[o.GetName()] = again()
	put(w.t, r, o)
}

func (w *world) meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{}}
}

// node changes its zone and its addresses; a pod CIDR once given stays.
func (w *world) node(i int) *corev1.Node {
	n := &corev1.Node{ObjectMeta: w.meta(fmt.Sprint("node-", i))}
	n.Namespace = ""
	n.Spec.PodCIDR = fmt.Sprintf("10.244.%d.0/24", i)
	n.Spec.PodCIDRs = []string{n.Spec.PodCIDR, fmt.Sprintf("fd00:244:%d::/64", i+1)}
	if z := w.r.IntN(3); z > 0 {
		n.Labels[corev1.LabelTopologyZone] = fmt.Sprint("zone-", z)
	}
	for x := range w.r.IntN(3) {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("192.0.%d.%d", x, w.r.IntN(4))})
	}
	return n
}

// pod changes its status; its node stays.
func (w *world) pod(i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: w.meta(fmt.Sprint("pod-", i))}
	if i > 0 {
		p.Spec.NodeName = fmt.Sprint("node-", i%3)
	}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	p.Status.Phase = []corev1.PodPhase{corev1.PodPending, corev1.PodRunning, corev1.PodRunning, corev1.PodFailed}[w.r.IntN(4)]
	if w.r.IntN(3) > 0 {
		p.Status.PodIP = fmt.Sprint("10.244.0.", i)
		p.Status.PodIPs = []corev1.PodIP{{IP: p.Status.PodIP}}
	}
	if w.r.IntN(2) == 0 {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// service changes ports and labels; what may not change follows from its number.
func (w *world) service(i int) *corev1.Service {
	s := &corev1.Service{ObjectMeta: w.meta(fmt.Sprint("svc-", i))}
	switch i {
	case 0:
		s.Spec.ClusterIP = corev1.ClusterIPNone
	case 1:
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, fmt.Sprintf("x%d.example.com", w.r.IntN(3))
	case 2:
		s.Spec.ClusterIPs = []string{"10.96.2.2", "fd00:96::202"}
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		dual := corev1.IPFamilyPolicyRequireDualStack
		s.Spec.IPFamilyPolicy = &dual
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	default:
		s.Spec.ClusterIP = fmt.Sprint("10.96.2.", i)
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if w.r.IntN(4) == 0 {
		s.Labels["service.kubernetes.io/service-proxy-name"] = "other"
	}
	s.Spec.PublishNotReadyAddresses = w.r.IntN(2) == 0
	for x := range 1 + w.r.IntN(3) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: fmt.Sprint("p", x), Port: int32(1000*x + w.r.IntN(3) + 1),
			Protocol: []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}[w.r.IntN(3)]})
	}
	return s
}

// slice changes all but its address type, its Service too.
func (w *world) slice(i int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: w.meta(fmt.Sprint("slice-", i)), AddressType: discoveryv1.AddressTypeIPv4}
	if i%3 == 0 {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	if w.r.IntN(6) > 0 {
		s.Labels[discoveryv1.LabelServiceName] = fmt.Sprint("svc-", w.r.IntN(3))
	}
	if w.r.IntN(4) == 0 {
		s.Labels[corev1.IsHeadlessService] = ""
	}
	for range w.r.IntN(3) {
		e := discoveryv1.Endpoint{Addresses: []string{fmt.Sprint("10.244.1.", w.r.IntN(250))}, Conditions: discoveryv1.EndpointConditions{
			Ready: w.maybe(), Serving: w.maybe(), Terminating: w.maybe()}}
		if i%3 == 0 {
			e.Addresses = []string{fmt.Sprintf("fd00:244:1::%x", 1+w.r.IntN(250))}
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	port := int32(80 + w.r.IntN(3))
	s.Ports = []discoveryv1.EndpointPort{{Port: &port}}
	return s
}

// maybe gives true, false, or nothing.
func (w *world) maybe() *bool {
	b := w.r.IntN(2) == 0
	if w.r.IntN(3) == 0 {
		return nil
	}
	return &b
}

func (w *world) objects() *file.Objects {
	o := &file.Objects{}
	for _, x := range w.nodes {
		o.Nodes = append(o.Nodes, x)
	}
	for _, x := range w.pods {
		o.Pods = append(o.Pods, x)
	}
	for _, x := range w.services {
		o.Services = append(o.Services, x)
	}
	for _, x := range w.slices {
		o.EndpointSlices = append(o.EndpointSlices, x)
	}
	return o
}

// write brings the folder to what should be there.
func (w *world) write() {
	w.t.Helper()
	writeList(w.t, w.dir, "v1", "Node", w.nodes)
	writeList(w.t, w.dir, "v1", "Pod", w.pods)
	writeList(w.t, w.dir, "v1", "Service", w.services)
	writeList(w.t, w.dir, "discovery.k8s.io/v1", "EndpointSlice", w.slices)
}

func writeList[T any](t *testing.T, dir, version, kind string, of map[string]T) {
	t.Helper()
	items := []T{}
	for _, o := range of {
		items = append(items, o)
	}
	data, err := json.Marshal(map[string]any{"apiVersion": version, "kind": kind + "List", "items": items})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, kind+".json"), data)
}
