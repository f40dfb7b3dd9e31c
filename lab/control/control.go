// Package control is the lab's stand-in for Kubernetes' control plane, and that
// of `podlane plan -f`: it completes objects as the API server would (Admit),
// makes and places the pods of Deployments and ReplicationControllers, and derives
// EndpointSlices (Expand). It is pure: objects in, objects out.
//
// It does the least that shows a network: no rolling updates (a changed template
// replaces all pods at once), no taints, affinities or resources, no jobs. What
// needs more is tested on a real cluster.
package control

import (
	"cmp"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// Config is what no object says of a cluster. Each list has one prefix a family,
// the primary family first.
type Config struct {
	Pods     []netip.Prefix // split among the nodes: a /24 each, or a /64
	Services []netip.Prefix
	Nodes    []netip.Prefix // addresses of nodes that come without
}

// Default gives the configuration for the families "ipv4", "ipv6" or "dual".
func Default(families string) (Config, error) {
	all := Config{
		Pods:     []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/48")},
		Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00:10:96::/112")},
		Nodes:    []netip.Prefix{netip.MustParsePrefix("192.168.200.0/24"), netip.MustParsePrefix("fd00:192:168:200::/64")},
	}
	switch families {
	case "dual":
		return all, nil
	case "ipv4":
		return Config{all.Pods[:1], all.Services[:1], all.Nodes[:1]}, nil
	case "ipv6":
		return Config{all.Pods[1:], all.Services[1:], all.Nodes[1:]}, nil
	}
	return Config{}, fmt.Errorf("IP families %q: want ipv4, ipv6 or dual", families)
}

func family(p netip.Prefix) corev1.IPFamily {
	if p.Addr().Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// DNS gives the address of the cluster's DNS: the tenth of each Service CIDR.
func (c Config) DNS() []netip.Addr {
	var addrs []netip.Addr
	for _, p := range c.Services {
		addrs = append(addrs, nth(p.Addr(), 10))
	}
	return addrs
}

// nth gives the n-th address after a.
func nth(a netip.Addr, n uint32) netip.Addr {
	raw := a.AsSlice()
	for i := len(raw) - 1; i >= 0 && n > 0; i-- {
		n += uint32(raw[i])
		raw[i], n = byte(n), n>>8
	}
	out, _ := netip.AddrFromSlice(raw)
	return out
}

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
	placed := Expand(admitted, nil)
	next := map[string]uint32{}
	observed := map[cluster.Key]Observed{}
	for _, p := range placed.Pods {
		o := Observed{Node: p.Spec.NodeName, Ready: true}
		if i := slices.IndexFunc(placed.Nodes, func(n *corev1.Node) bool { return n.Name == o.Node }); i >= 0 && len(p.Status.PodIPs) == 0 {
			next[o.Node]++
			for _, cidr := range convert.Node(placed.Nodes[i]).PodCIDRs {
				o.IPs = append(o.IPs, nth(cidr.Addr(), next[o.Node]+1)) // the first is the gateway
			}
		}
		observed[keyOf(p)] = o
	}
	return Expand(admitted, observed), problems
}

// Expand gives the objects that agents and DNS servers follow. Pods that were
// observed stay on their nodes.
func Expand(admitted *file.Objects, observed map[cluster.Key]Observed) *file.Objects {
	out := &file.Objects{Nodes: admitted.Nodes, Namespaces: admitted.Namespaces, Services: admitted.Services, Unknown: admitted.Unknown}
	out.Pods = allPods(admitted)
	place(out.Pods, admitted.Nodes, observed)
	for _, p := range out.Pods {
		if o, ok := observed[keyOf(p)]; ok {
			setStatus(p, o, admitted.Nodes)
		}
	}
	out.EndpointSlices = append(slices.Clone(admitted.EndpointSlices), derive(admitted, out.Pods)...)
	return out
}

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
	for _, s := range change.Services {
		i := slices.IndexFunc(held.Services, func(h *corev1.Service) bool { return keyOf(h) == keyOf(s) })
		if i >= 0 && s.Spec.ClusterIP == "" && len(s.Spec.ClusterIPs) == 0 && held.Services[i].Spec.ClusterIP != corev1.ClusterIPNone {
			s = s.DeepCopy()
			s.Spec.ClusterIP, s.Spec.ClusterIPs = held.Services[i].Spec.ClusterIP, held.Services[i].Spec.ClusterIPs
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
	return slices.DeleteFunc(slices.Clone(from), func(o T) bool {
		return slices.ContainsFunc(gone, func(g T) bool { return keyOf(g) == keyOf(o) })
	})
}

func keyOf(o metav1.Object) cluster.Key {
	return cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func byKey[T metav1.Object](of []T) []T {
	return slices.SortedFunc(slices.Values(of), func(a, b T) int { return keyOf(a).Compare(keyOf(b)) })
}

// digest gives n characters that depend on v alone, of Kubernetes' alphabet for
// made names.
func digest(n int, v ...any) string {
	const letters = "bcdfghjklmnpqrstvwxz2456789"
	text, _ := json.Marshal(v) // API objects and strings always marshal
	h := fnv.New64a()
	_, _ = h.Write(text)
	sum, out := h.Sum64(), make([]byte, n)
	for i := range out {
		out[i] = letters[sum%uint64(len(letters))]
		sum /= uint64(len(letters))
	}
	return string(out)
}

// workload is a Deployment or a ReplicationController.
type workload struct {
	key      cluster.Key
	kind     string
	replicas *int32
	matches  map[string]string
	template *corev1.PodTemplateSpec
}

func workloads(of *file.Objects) []workload {
	var all []workload
	for _, d := range of.Deployments {
		all = append(all, deployment(d))
	}
	for _, r := range of.ReplicationControllers {
		template := r.Spec.Template
		if template == nil {
			template = &corev1.PodTemplateSpec{}
		}
		matches := r.Spec.Selector
		if len(matches) == 0 {
			matches = template.Labels
		}
		all = append(all, workload{keyOf(r), "ReplicationController", r.Spec.Replicas, matches, template})
	}
	slices.SortFunc(all, func(a, b workload) int { return cmp.Or(a.key.Compare(b.key), cmp.Compare(a.kind, b.kind)) })
	return all
}

func deployment(d *appsv1.Deployment) workload {
	w := workload{keyOf(d), "Deployment", d.Spec.Replicas, d.Spec.Template.Labels, &d.Spec.Template}
	if d.Spec.Selector != nil && len(d.Spec.Selector.MatchLabels) > 0 {
		w.matches = d.Spec.Selector.MatchLabels
	}
	return w
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
