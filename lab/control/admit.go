package control

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

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

// Admit completes objects as the API server and its controllers would: nodes
// get addresses and pod CIDRs, Services cluster IPs and node ports; the
// namespaces of all exist. Objects that the API would refuse are left out and
// named. Admitted objects are admitted as they are.
func (c Config) Admit(given *file.Objects) (*file.Objects, []cluster.Problem) {
	a := &admission{Config: c, nets: map[netip.Prefix]string{}, addrs: map[netip.Addr]string{}, nodePorts: map[int32]string{}}
	out := *given
	out.Nodes, out.Services, out.Namespaces = a.nodes(given.Nodes), a.services(given.Services), namespaces(given)
	for _, s := range given.EndpointSlices {
		if k := convert.EndpointSlice(s); k != nil {
			a.problems = append(a.problems, k.Problems...)
		}
	}
	return &out, a.problems
}

// admission is one Admit: what is taken, and by whom.
type admission struct {
	Config
	nets      map[netip.Prefix]string
	addrs     map[netip.Addr]string
	nodePorts map[int32]string
	problems  []cluster.Problem
}

func (a *admission) refuse(kind string, o metav1.Object, field, format string, args ...any) {
	a.problems = append(a.problems, cluster.Problem{Kind: kind, Key: keyOf(o), Field: field, Err: fmt.Sprintf(format, args...)})
}

// nodes takes what the nodes name first, then gives the others what is free.
func (a *admission) nodes(given []*corev1.Node) []*corev1.Node {
	var kept []*corev1.Node
	for _, n := range byKey(given) {
		if a.takeNode(n) {
			kept = append(kept, n.DeepCopy())
		}
	}
	for _, n := range kept {
		a.completeNode(n, convert.Node(n))
	}
	return kept
}

func (a *admission) takeNode(n *corev1.Node) bool {
	was, node := len(a.problems), convert.Node(n)
	a.problems = append(a.problems, node.Problems...)
	for _, cidr := range node.PodCIDRs {
		for other, by := range a.nets {
			if other.Overlaps(cidr) {
				a.refuse("Node", n, "spec.podCIDRs", "%s overlaps %s of Node %s: the node is left out", cidr, other, by)
			}
		}
	}
	for _, addr := range node.Addresses {
		if by, taken := a.addrs[addr]; taken {
			a.refuse("Node", n, "status.addresses", "%s is Node %s's: the node is left out", addr, by)
		}
	}
	if len(a.problems) > was {
		return false
	}
	for _, cidr := range node.PodCIDRs {
		a.nets[cidr] = n.Name
	}
	for _, addr := range node.Addresses {
		a.addrs[addr] = n.Name
	}
	return true
}

func (a *admission) completeNode(n *corev1.Node, have *cluster.Node) {
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelHostname] = n.Name
	for _, p := range a.Nodes {
		if len(have.Addresses) == 0 {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.freeAddr(p, n.Name).String()})
		}
	}
	for _, p := range a.Pods {
		if len(have.PodCIDRs) == 0 {
			n.Spec.PodCIDRs = append(n.Spec.PodCIDRs, a.freeNet(p, n.Name).String())
		}
	}
	if len(n.Spec.PodCIDRs) > 0 {
		n.Spec.PodCIDR = n.Spec.PodCIDRs[0]
	}
}

func (a *admission) freeAddr(of netip.Prefix, who string) netip.Addr {
	for addr := of.Addr().Next(); ; addr = addr.Next() {
		if a.addrs[addr] == "" {
			a.addrs[addr] = who
			return addr
		}
	}
}

// freeNet gives the next free /24 or /64 after the first: node n1 gets
// 10.244.1.0/24.
func (a *admission) freeNet(of netip.Prefix, who string) netip.Prefix {
	bits := 24
	if of.Addr().Is6() {
		bits = 64
	}
	for p := netip.PrefixFrom(of.Addr(), bits); ; {
		raw := p.Addr().AsSlice()
		for i := bits/8 - 1; i >= 0; i-- { // the next prefix
			if raw[i]++; raw[i] != 0 {
				break
			}
		}
		addr, _ := netip.AddrFromSlice(raw)
		p = netip.PrefixFrom(addr, bits)
		free := true
		for other := range a.nets {
			free = free && !other.Overlaps(p)
		}
		if free {
			a.nets[p] = who
			return p
		}
	}
}

func namespaces(of *file.Objects) []*corev1.Namespace {
	all := slices.Clone(of.Namespaces)
	need := func(name string) {
		if !slices.ContainsFunc(all, func(n *corev1.Namespace) bool { return n.Name == name }) {
			all = append(all, &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: metav1.ObjectMeta{Name: name}})
		}
	}
	need(metav1.NamespaceDefault)
	need(metav1.NamespaceSystem)
	for _, s := range of.Services {
		need(s.Namespace)
	}
	for _, p := range of.Pods {
		need(p.Namespace)
	}
	for _, w := range workloads(of) {
		need(w.key.Namespace)
	}
	return byKey(all)
}

// services takes what the Services name first, then gives the others what is
// free, beginning at a place that depends on the name alone.
func (a *admission) services(given []*corev1.Service) []*corev1.Service {
	var kept []*corev1.Service
	for _, s := range byKey(given) {
		if a.takeService(s) {
			kept = append(kept, s.DeepCopy())
		}
	}
	for _, s := range kept {
		a.completeService(s)
	}
	return kept
}

func (a *admission) takeService(s *corev1.Service) bool {
	was, svc := len(a.problems), convert.Service(s)
	a.problems = append(a.problems, svc.Problems...)
	for _, ip := range svc.ClusterIPs {
		if !slices.ContainsFunc(a.Services, func(p netip.Prefix) bool { return p.Contains(ip) }) {
			a.refuse("Service", s, "spec.clusterIPs", "%s is not in the cluster's Service CIDRs %v: the Service is left out", ip, a.Services)
		} else if by, taken := a.addrs[ip]; taken {
			a.refuse("Service", s, "spec.clusterIPs", "%s is Service %s's: the Service is left out", ip, by)
		}
	}
	for _, p := range s.Spec.Ports {
		if by := a.nodePorts[p.NodePort]; by != "" && p.NodePort != 0 && by != keyOf(s).String() {
			a.refuse("Service", s, "spec.ports.nodePort", "%d is Service %s's: the Service is left out", p.NodePort, by)
		}
	}
	if len(a.problems) > was {
		return false
	}
	for _, ip := range svc.ClusterIPs {
		a.addrs[ip] = keyOf(s).String()
	}
	for _, p := range s.Spec.Ports {
		a.nodePorts[p.NodePort] = keyOf(s).String()
	}
	return true
}

func (a *admission) completeService(s *corev1.Service) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	a.families(s)
	if svc := convert.Service(s); !svc.Headless && len(svc.ClusterIPs) == 0 {
		for _, f := range s.Spec.IPFamilies {
			i := slices.IndexFunc(a.Services, func(p netip.Prefix) bool { return family(p) == f })
			s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, a.freeServiceIP(a.Services[i], keyOf(s).String()).String())
		}
		s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	}
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		if p.NodePort == 0 && (s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer) {
			for p.NodePort = 30000 + int32(hash(keyOf(s).String(), p.Name)%2768); a.nodePorts[p.NodePort] != ""; p.NodePort++ {
			}
			a.nodePorts[p.NodePort] = keyOf(s).String()
		}
	}
}

// families fills spec.ipFamilies: those of its addresses, or as the policy says;
// one family, the cluster's first, where it says nothing.
func (a *admission) families(s *corev1.Service) {
	for _, ip := range convert.Service(s).ClusterIPs {
		if f := family(netip.PrefixFrom(ip, 0)); !slices.Contains(s.Spec.IPFamilies, f) {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, f)
		}
	}
	s.Spec.IPFamilies = slices.DeleteFunc(s.Spec.IPFamilies, func(f corev1.IPFamily) bool {
		return !slices.ContainsFunc(a.Services, func(p netip.Prefix) bool { return family(p) == f })
	})
	dual := s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack
	for _, p := range a.Services {
		if !slices.Contains(s.Spec.IPFamilies, family(p)) && (dual || len(s.Spec.IPFamilies) == 0) {
			s.Spec.IPFamilies = append(s.Spec.IPFamilies, family(p))
		}
	}
}

// freeServiceIP leaves the first 16 addresses to those who ask for them.
func (a *admission) freeServiceIP(of netip.Prefix, who string) netip.Addr {
	for n := hash(who, of.String()); ; n++ {
		if ip := nth(of.Addr(), 16+n%(1<<16-32)); a.addrs[ip] == "" {
			a.addrs[ip] = who
			return ip
		}
	}
}

func hash(parts ...string) uint32 {
	h := fnv.New32a()
	for _, p := range parts {
		_, _ = h.Write([]byte(p + "\x00"))
	}
	return h.Sum32()
}
