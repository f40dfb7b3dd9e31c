package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// Observed is what a pod is seen to be.
type Observed struct {
	Node  string
	IPs   []netip.Addr
	Ready bool
}

// Simulate is Admit and Expand for a cluster that does not run: all pods are
// Ready, at the first addresses of their nodes' pod CIDRs. Without a Node among
// the objects there are two.
func (c Config) Simulate(given *file.Objects) (*file.Objects, []cluster.Problem) {
	withNodes := *given
	if len(given.Nodes) == 0 {
		withNodes.Nodes = Nodes(2)
	}
	admitted, problems := c.Admit(&withNodes)
	nodes, used, observed := map[string]*cluster.Node{}, map[string]uint32{}, map[cluster.Key]Observed{}
	for _, n := range admitted.Nodes {
		nodes[n.Name] = convert.Node(n)
	}
	for _, p := range Expand(admitted, nil).Pods {
		o := Observed{Node: p.Spec.NodeName, Ready: true}
		switch n := nodes[o.Node]; {
		case n == nil || len(p.Status.PodIPs) > 0:
		case p.Spec.HostNetwork:
			o.IPs = n.Addresses
		default:
			used[n.Name]++
			for _, cidr := range n.PodCIDRs {
				o.IPs = append(o.IPs, nth(cidr.Addr(), cidr.Addr().BitLen(), used[n.Name]+1)) // the first is the gateway
			}
		}
		observed[keyOf(p)] = o
	}
	return Expand(admitted, observed), problems
}

// Expand gives the objects that agents and DNS servers follow. Pods that were
// observed stay on their nodes.
func Expand(admitted *file.Objects, observed map[cluster.Key]Observed) *file.Objects {
	out := &file.Objects{Nodes: admitted.Nodes, Services: admitted.Services, Unknown: admitted.Unknown}
	out.Pods = place(pods(admitted), admitted.Nodes, observed)
	out.Namespaces = namespaces(admitted.Namespaces, out)
	for _, p := range out.Pods {
		if o, ok := observed[keyOf(p)]; ok {
			setStatus(p, o)
		}
	}
	out.EndpointSlices = append(slices.Clone(admitted.EndpointSlices), derive(admitted, out.Pods)...)
	return out
}

// namespaces gives those given and those that objects are in.
func namespaces(given []*corev1.Namespace, of *file.Objects) []*corev1.Namespace {
	all, names := slices.Clone(given), []string{metav1.NamespaceDefault, metav1.NamespaceSystem}
	for _, s := range of.Services {
		names = append(names, s.Namespace)
	}
	for _, p := range of.Pods {
		names = append(names, p.Namespace)
	}
	for _, name := range names {
		if !slices.ContainsFunc(all, func(n *corev1.Namespace) bool { return n.Name == name }) {
			all = append(all, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	return byKey(all)
}

// deployments gives the Deployments, and the ReplicationControllers as such.
func deployments(of *file.Objects) []*appsv1.Deployment {
	all := slices.Clone(of.Deployments)
	for _, r := range of.ReplicationControllers {
		d := &appsv1.Deployment{TypeMeta: r.TypeMeta, ObjectMeta: r.ObjectMeta}
		d.Spec.Replicas, d.Spec.Selector = r.Spec.Replicas, &metav1.LabelSelector{MatchLabels: r.Spec.Selector}
		if r.Spec.Template != nil {
			d.Spec.Template = *r.Spec.Template
		}
		all = append(all, d)
	}
	return all
}

// pods gives the pods that there should be, as copies, in order. A dump of a
// cluster has pods of its Deployments already: they count.
func pods(of *file.Objects) []*corev1.Pod {
	var all []*corev1.Pod
	for _, p := range of.Pods {
		p = p.DeepCopy()
		p.UID = cmp.Or(p.UID, types.UID(digest(12, p.Namespace, p.Name, p.Spec)))
		all = append(all, p)
	}
	for _, d := range deployments(of) {
		own, have, want := d.Spec.Template.Labels, 0, 1
		if d.Spec.Replicas != nil {
			want = int(*d.Spec.Replicas)
		}
		for _, p := range of.Pods {
			if p.Namespace == d.Namespace && len(p.OwnerReferences) > 0 && len(own) > 0 && matches(own, p.Labels) {
				have++
			}
		}
		for i := have; i < want; i++ {
			all = append(all, podOf(d, i))
		}
	}
	return byKey(all)
}

// podOf makes the i-th pod. Its name depends on the template, so that another
// template makes other pods.
func podOf(d *appsv1.Deployment, i int) *corev1.Pod {
	name := d.Name
	if d.Kind != "ReplicationController" {
		name += "-" + digest(9, d.Spec.Template)
	}
	name = strings.Trim(name[:min(len(name), 57)], "-.") + "-" + digest(5, d.Namespace, d.Kind, d.Name, d.Spec.Template, i)
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}}
	p.ObjectMeta, p.Spec = *d.Spec.Template.ObjectMeta.DeepCopy(), *d.Spec.Template.Spec.DeepCopy()
	p.Name, p.Namespace, p.UID = name, d.Namespace, types.UID(digest(12, d.Namespace, name))
	p.OwnerReferences = []metav1.OwnerReference{{Kind: d.Kind, Name: d.Name}}
	return p
}

// digest gives n characters that depend on v alone, of the alphabet of
// Kubernetes' made names.
func digest(n int, v ...any) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	sum, out := hash(v...), make([]byte, n)
	for i := range out {
		out[i] = letters[sum%uint64(len(letters))]
		sum /= uint64(len(letters))
	}
	return string(out)
}

func matches(selector, of map[string]string) bool {
	return labels.SelectorFromSet(selector).Matches(labels.Set(of))
}

// place gives each pod without a node the one with the fewest pods of its owner,
// then the fewest pods, then the first. A pod that none suits stays without.
func place(pods []*corev1.Pod, nodes []*corev1.Node, observed map[cluster.Key]Observed) []*corev1.Pod {
	have := map[[2]string]int{} // by owner, or "", and node
	put := func(p *corev1.Pod, node string) {
		p.Spec.NodeName = node
		have[[2]string{ownerOf(p), node}]++
		have[[2]string{"", node}]++
	}
	for _, p := range pods {
		if node := cmp.Or(p.Spec.NodeName, observed[keyOf(p)].Node); node != "" {
			put(p, node)
		}
	}
	for _, p := range pods {
		fit := slices.DeleteFunc(byKey(nodes), func(n *corev1.Node) bool { return n.Spec.Unschedulable || !matches(p.Spec.NodeSelector, n.Labels) })
		if p.Spec.NodeName != "" || len(fit) == 0 {
			continue
		}
		put(p, slices.MinFunc(fit, func(a, b *corev1.Node) int {
			return cmp.Or(have[[2]string{ownerOf(p), a.Name}]-have[[2]string{ownerOf(p), b.Name}], have[[2]string{"", a.Name}]-have[[2]string{"", b.Name}])
		}).Name)
	}
	return pods
}

// ownerOf names a pod's Deployment, or is "".
func ownerOf(p *corev1.Pod) string {
	for _, o := range p.OwnerReferences {
		return p.Namespace + "/" + o.Kind + "/" + o.Name
	}
	return ""
}

func setStatus(p *corev1.Pod, o Observed) {
	if len(o.IPs) > 0 {
		p.Status.PodIP, p.Status.PodIPs = o.IPs[0].String(), nil
	}
	for _, a := range o.IPs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	ready := map[bool]corev1.ConditionStatus{true: corev1.ConditionTrue, false: corev1.ConditionFalse}[o.Ready]
	p.Status.Phase = cmp.Or(p.Status.Phase, corev1.PodRunning)
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
}

// derive gives the slices of the Services that have a selector, except those
// whose slices are among the objects already.
func derive(of *file.Objects, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	given := map[cluster.Key]bool{}
	for _, e := range of.EndpointSlices {
		given[cluster.Key{Namespace: e.Namespace, Name: e.Labels[discoveryv1.LabelServiceName]}] = true
	}
	zones := map[string]string{}
	for _, n := range of.Nodes {
		zones[n.Name] = n.Labels[corev1.LabelTopologyZone]
	}
	var all []*discoveryv1.EndpointSlice
	for _, s := range of.Services {
		if given[keyOf(s)] || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		for _, f := range s.Spec.IPFamilies {
			all = append(all, slicesOf(s, f, pods, zones)...)
		}
	}
	return all
}

// slicesOf gives the slices of one family: pods whose target ports come to the
// same numbers share a slice. A pod that has ended, or has no address, is in none.
func slicesOf(s *corev1.Service, f corev1.IPFamily, pods []*corev1.Pod, zones map[string]string) []*discoveryv1.EndpointSlice {
	byPorts := map[string]*discoveryv1.EndpointSlice{}
	var all []*discoveryv1.EndpointSlice
	for _, p := range pods {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		at := slices.IndexFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return strings.Contains(ip.IP, ":") == (f == corev1.IPv6Protocol) })
		if ended || at < 0 || p.Namespace != s.Namespace || !matches(s.Spec.Selector, p.Labels) {
			continue
		}
		ports, id := targetPorts(s, p)
		e := byPorts[id]
		if e == nil {
			e = newSlice(s, f, id)
			e.Ports, byPorts[id], all = ports, e, append(all, e)
		}
		e.Endpoints = append(e.Endpoints, endpoint(s, p, p.Status.PodIPs[at].IP, zones[p.Spec.NodeName]))
	}
	return all
}

func newSlice(s *corev1.Service, f corev1.IPFamily, id string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"}, AddressType: discoveryv1.AddressType(f)}
	e.Namespace, e.Name = s.Namespace, s.Name+"-"+digest(5, f, id)
	e.Labels = map[string]string{discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "lab.podlane"}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		e.Labels["service.kubernetes.io/headless"] = ""
	}
	return e
}

// targetPorts gives the ports of a pod and a text that tells them from others'. A
// port whose target name no container of the pod has is left out.
func targetPorts(s *corev1.Service, p *corev1.Pod) (out []discoveryv1.EndpointPort, id string) {
	for _, port := range s.Spec.Ports {
		name, protocol := port.Name, cmp.Or(port.Protocol, corev1.ProtocolTCP)
		number := cmp.Or(port.TargetPort.IntVal, port.Port)
		if target := port.TargetPort.StrVal; target != "" {
			number = namedPort(p, target, protocol)
		}
		if number != 0 {
			out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: port.AppProtocol})
			id += fmt.Sprintf("%s %s %d;", name, protocol, number)
		}
	}
	return out, id
}

func namedPort(p *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == name && cmp.Or(port.Protocol, corev1.ProtocolTCP) == protocol {
				return port.ContainerPort
			}
		}
	}
	return 0
}

func endpoint(s *corev1.Service, p *corev1.Pod, ip, zone string) discoveryv1.Endpoint {
	serving, terminating, node := convert.Pod(p).Ready, p.DeletionTimestamp != nil, p.Spec.NodeName
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		NodeName:   &node,
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if hostname := p.Spec.Hostname; hostname != "" && p.Spec.Subdomain == s.Name {
		e.Hostname = &hostname
	}
	if zone != "" {
		e.Zone = &zone
	}
	// The hint of KEP-3015: each endpoint is for its own node.
	if d := s.Spec.TrafficDistribution; d != nil && *d == corev1.ServiceTrafficDistributionPreferSameNode {
		e.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: node}}}
	}
	return e
}
