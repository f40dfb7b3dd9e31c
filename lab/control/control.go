// Package control is the lab's stand-in for Kubernetes' control plane, and that
// of `podlane plan -f`: it completes objects as the API server would (Admit),
// makes and places the pods of Deployments and ReplicationControllers, and derives
// EndpointSlices (Expand). It is pure: objects in, objects out.
//
// It does the least that shows a network: no rolling updates (a changed template
// replaces all pods at once), no taints, affinities, resources, jobs or node port
// allocation. What needs more is tested on a real cluster.
package control

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// Config is what no object says of a cluster, for each family, the primary one
// first.
type Config []Family

// Family is the networks of one IP family.
type Family struct {
	Name     corev1.IPFamily
	Pods     netip.Prefix // split among the nodes: a /24 each, or a /64
	Services netip.Prefix
	Nodes    netip.Prefix // of nodes that come without addresses
	DNS      netip.Addr   // the cluster's DNS: the tenth address of Services
}

// Default gives the configuration for the families "ipv4", "ipv6" or "dual".
func Default(families string) (Config, error) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	dual := Config{
		{corev1.IPv4Protocol, p("10.244.0.0/16"), p("10.96.0.0/16"), p("192.168.200.0/24"), a("10.96.0.10")},
		{corev1.IPv6Protocol, p("fd00:10:244::/48"), p("fd00:10:96::/112"), p("fd00:192:168:200::/64"), a("fd00:10:96::a")},
	}
	part := map[string]Config{"dual": dual, "ipv4": dual[:1], "ipv6": dual[1:]}[families]
	if part == nil {
		return nil, fmt.Errorf("IP families %q: want ipv4, ipv6 or dual", families)
	}
	return part, nil
}

// Nodes gives n nodes, n1 and on, that Admit completes.
func Nodes(n int) []*corev1.Node {
	var nodes []*corev1.Node
	for i := range n {
		nodes = append(nodes, &corev1.Node{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Node"},
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i+1)},
		})
	}
	return nodes
}

// Admit completes objects as the API server and its controllers would: nodes get
// addresses and pod CIDRs, Services cluster IPs and families. Objects that the API
// would refuse are left out and named. Admitted objects are admitted as they are.
func (c Config) Admit(given *file.Objects) (*file.Objects, []cluster.Problem) {
	a := &admission{Config: c, addrs: map[netip.Addr]string{}}
	out := *given
	out.Nodes = admitAll(given.Nodes, a.takeNode, a.completeNode)
	out.Services = admitAll(given.Services, a.takeService, a.completeService)
	for _, s := range given.EndpointSlices {
		if slice := convert.EndpointSlice(s); slice != nil {
			a.problems = append(a.problems, slice.Problems...)
		}
	}
	return &out, a.problems
}

// admitAll takes what the objects name first, then gives the others what is
// free.
func admitAll[T interface {
	metav1.Object
	DeepCopy() T
}](given []T, take func(T) []cluster.Problem, complete func(T)) []T {
	var kept []T
	for _, o := range byKey(given) {
		if len(take(o)) == 0 {
			kept = append(kept, o.DeepCopy())
		}
	}
	for _, o := range kept {
		complete(o)
	}
	return kept
}

// admission is one Admit: what is taken, and by whom.
type admission struct {
	Config
	nets     []podNet
	addrs    map[netip.Addr]string
	problems []cluster.Problem
}

type podNet struct {
	netip.Prefix
	node string
}

// claim gives the object its addresses, unless another one has one of them or it
// has problems of its own.
func (a *admission) claim(kind string, key cluster.Key, field string, addrs []netip.Addr, ps []cluster.Problem) []cluster.Problem {
	for _, addr := range addrs {
		if by := a.addrs[addr]; by != "" {
			ps = append(ps, refused(kind, key, field, "%s is taken by %s", addr, by))
		}
	}
	for i := 0; i < len(addrs) && len(ps) == 0; i++ {
		a.addrs[addrs[i]] = kind + " " + key.String()
	}
	a.problems = append(a.problems, ps...)
	return ps
}

func refused(kind string, key cluster.Key, field, format string, args ...any) cluster.Problem {
	return cluster.Problem{Kind: kind, Key: key, Field: field, Err: fmt.Sprintf(format, args...) + ": the " + kind + " is left out"}
}

func (a *admission) takeNode(n *corev1.Node) []cluster.Problem {
	node := convert.Node(n)
	ps := slices.Clone(node.Problems)
	for _, cidr := range node.PodCIDRs {
		if i := slices.IndexFunc(a.nets, func(p podNet) bool { return p.Overlaps(cidr) }); i >= 0 {
			ps = append(ps, refused("Node", node.Key, "spec.podCIDRs", "%s overlaps %s of Node %s", cidr, a.nets[i].Prefix, a.nets[i].node))
		}
	}
	ps = a.claim("Node", node.Key, "status.addresses", node.Addresses, ps)
	for i := 0; i < len(node.PodCIDRs) && len(ps) == 0; i++ {
		a.nets = append(a.nets, podNet{node.PodCIDRs[i], n.Name})
	}
	return ps
}

func (a *admission) completeNode(n *corev1.Node) {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelHostname] = n.Name
	have := convert.Node(n)
	for _, f := range a.Config {
		if len(have.Addresses) == 0 {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.freeAddr(f.Nodes, 1, "Node "+n.Name)})
		}
		if len(have.PodCIDRs) == 0 {
			n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, a.freeNet(f.Pods, n.Name))
			n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
		}
	}
}

// freeAddr gives the first free address from the n-th on.
func (a *admission) freeAddr(of netip.Prefix, n uint32, who string) string {
	for ; ; n++ {
		if addr := nth(of.Addr(), of.Addr().BitLen(), n); a.addrs[addr] == "" {
			a.addrs[addr] = who
			return addr.String()
		}
	}
}

// freeNet gives the next free /24 or /64 after the first: node n1 gets
// 10.244.1.0/24.
func (a *admission) freeNet(of netip.Prefix, who string) string {
	bits := map[bool]int{true: 24, false: 64}[of.Addr().Is4()]
	for n := uint32(1); ; n++ {
		p := netip.PrefixFrom(nth(of.Addr(), bits, n), bits)
		if !slices.ContainsFunc(a.nets, func(o podNet) bool { return o.Overlaps(p) }) {
			a.nets = append(a.nets, podNet{p, who})
			return p.String()
		}
	}
}

func (a *admission) takeService(s *corev1.Service) []cluster.Problem {
	svc := convert.Service(s)
	var ps []cluster.Problem
	for _, p := range svc.Problems {
		if strings.HasPrefix(p.Field, "spec.clusterIP") {
			ps = append(ps, p)
		} else {
			a.problems = append(a.problems, p)
		}
	}
	for _, ip := range svc.ClusterIPs {
		if !slices.ContainsFunc(a.Config, func(f Family) bool { return f.Services.Contains(ip) }) {
			ps = append(ps, refused("Service", svc.Key, "spec.clusterIPs", "%s is not in the cluster's Service CIDRs", ip))
		}
	}
	return a.claim("Service", svc.Key, "spec.clusterIPs", svc.ClusterIPs, ps)
}

// completeService begins to look for a free cluster IP at a place that depends on
// the name alone, and leaves the first 16 to those who ask for them.
func (a *admission) completeService(s *corev1.Service) {
	svc := convert.Service(s)
	if svc.Type == cluster.ExternalName {
		return
	}
	families := a.families(s, svc)
	s.Spec.IPFamilies = nil
	if len(svc.ClusterIPs) > 0 && len(s.Spec.ClusterIPs) == 0 {
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	for _, f := range families {
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, f.Name)
		if !svc.Headless && !slices.ContainsFunc(svc.ClusterIPs, f.Services.Contains) {
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.freeAddr(f.Services, 16+uint32(hash(svc.Key)%(1<<15)), "Service "+svc.Key.String()))
			s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
		}
	}
}

// families gives those of the Service's addresses, those it names where it has
// none, and all where its policy says so; else the cluster's first.
func (a *admission) families(s *corev1.Service, svc *cluster.Service) Config {
	var out, rest Config
	for _, f := range a.Config {
		if slices.ContainsFunc(svc.ClusterIPs, f.Services.Contains) || len(svc.ClusterIPs) == 0 && slices.Contains(s.Spec.IPFamilies, f.Name) {
			out = append(out, f)
		} else {
			rest = append(rest, f)
		}
	}
	if p := s.Spec.IPFamilyPolicy; p != nil && *p != corev1.IPFamilyPolicySingleStack {
		return append(out, rest...)
	}
	if len(out) == 0 {
		return a.Config[:1]
	}
	return out
}

// nth gives the n-th address after a, or the n-th prefix of that length.
func nth(a netip.Addr, bits int, n uint32) netip.Addr {
	raw := a.AsSlice()
	for i := bits/8 - 1; i >= 0 && n > 0; i-- {
		n += uint32(raw[i])
		raw[i], n = byte(n), n>>8
	}
	out, _ := netip.AddrFromSlice(raw)
	return out
}

// hash gives a number that depends on v alone.
func hash(v ...any) uint64 {
	text, _ := json.Marshal(v) // API objects and strings always marshal
	h := fnv.New64a()
	_, _ = h.Write(text)
	return h.Sum64()
}

func keyOf(o metav1.Object) cluster.Key {
	return cluster.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
}

func byKey[T metav1.Object](of []T) []T {
	return slices.SortedFunc(slices.Values(of), func(a, b T) int { return keyOf(a).Compare(keyOf(b)) })
}
