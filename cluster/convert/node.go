package convert

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/podlane/podlane/cluster"
)

// Node converts a node. Addresses that are no InternalIP are left out without a
// word; a second pod CIDR of one family is a Problem, as the API refuses it.
func Node(n *corev1.Node) *cluster.Node {
	p := problems{kind: "Node", key: cluster.Key{Name: n.Name}}
	out := &cluster.Node{Key: p.key, UID: string(n.UID), Zone: intern(n.Labels[corev1.LabelTopologyZone])}
	for i, a := range n.Status.Addresses {
		if a.Type != corev1.NodeInternalIP {
			continue
		}
		if ip, ok := p.addr(fmt.Sprintf("status.addresses[%d].address", i), a.Address); ok {
			out.Addresses = append(out.Addresses, ip)
		}
	}
	out.PodCIDRs = podCIDRs(&p, n)
	out.Leaving = leaving(n)
	if !n.CreationTimestamp.IsZero() {
		out.Created = n.CreationTimestamp.Unix()
	}
	out.Problems = p.list
	return out
}

// leaving is the condition under which kube-proxy's /healthz says 503.
func leaving(n *corev1.Node) bool {
	return n.DeletionTimestamp != nil || slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
		return t.Key == "ToBeDeletedByClusterAutoscaler"
	})
}

func podCIDRs(p *problems, n *corev1.Node) []netip.Prefix {
	field, cidrs := indexed("spec.podCIDRs[%d]"), n.Spec.PodCIDRs
	if len(cidrs) == 0 && n.Spec.PodCIDR != "" {
		field, cidrs = func(int) string { return "spec.podCIDR" }, []string{n.Spec.PodCIDR}
	}
	var kept []netip.Prefix
	for i, s := range cidrs {
		c, ok := p.prefix(field(i), s)
		if !ok {
			continue
		}
		if slices.ContainsFunc(kept, func(k netip.Prefix) bool { return k.Addr().Is4() == c.Addr().Is4() }) {
			p.add(field(i), "%s is a second CIDR of its family: it is left out", c)
			continue
		}
		kept = append(kept, c)
	}
	return kept
}

// Namespace converts a namespace.
func Namespace(n *corev1.Namespace) *cluster.Namespace {
	return &cluster.Namespace{Key: cluster.Key{Name: intern(n.Name)}}
}

// ServiceCIDR converts a range of cluster IPs.
func ServiceCIDR(c *networkingv1.ServiceCIDR) *cluster.ServiceCIDR {
	p := problems{kind: "ServiceCIDR", key: cluster.Key{Name: c.Name}}
	out := &cluster.ServiceCIDR{Key: p.key}
	for i, s := range c.Spec.CIDRs {
		if cidr, ok := p.prefix(fmt.Sprintf("spec.cidrs[%d]", i), s); ok {
			out.CIDRs = append(out.CIDRs, cidr)
		}
	}
	out.Problems = p.list
	return out
}

// Pod converts a pod, or gives nil for one that no node has yet.
func Pod(pod *corev1.Pod) *cluster.Pod {
	if pod.Spec.NodeName == "" {
		return nil
	}
	p := problems{kind: "Pod", key: key(pod.Namespace, pod.Name)}
	out := &cluster.Pod{
		Key:         p.key,
		UID:         string(pod.UID),
		Node:        intern(pod.Spec.NodeName),
		HostNetwork: pod.Spec.HostNetwork,
		Done:        pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
		Ready:       ready(pod),
		Hostname:    pod.Spec.Hostname,
		Subdomain:   pod.Spec.Subdomain,
		NormalPath:  normalPath(pod.Annotations),
		RulesOnly:   rulesOnly(pod.Annotations),
	}
	out.IPs = podIPs(&p, pod)
	out.Problems = p.list
	return out
}

// Annotations of pods whose packets are to go through all of the kernel: by choice,
// and because a limit of their bandwidth would not see a shortcut.
const (
	fastPathAnnotation = "podlane.dev/fast-path"
	ingressBandwidth   = "kubernetes.io/ingress-bandwidth"
	egressBandwidth    = "kubernetes.io/egress-bandwidth"
)

func normalPath(annotations map[string]string) string {
	switch {
	case annotations[fastPathAnnotation] == "off":
		return "opt-out"
	case annotations[ingressBandwidth] != "" || annotations[egressBandwidth] != "":
		return "bandwidth"
	}
	return ""
}

// meshes are annotations of pods with a service mesh's proxy, to which the pod's own
// rules send what goes to a Service's address.
var meshes = []string{"sidecar.istio.io/status", "linkerd.io/proxy-version", "kuma.io/sidecar-injected"}

func rulesOnly(annotations map[string]string) string {
	if annotations[fastPathAnnotation] == "off" {
		return "opt-out"
	}
	for _, m := range meshes {
		if annotations[m] != "" {
			return "mesh"
		}
	}
	return ""
}

func podIPs(p *problems, pod *corev1.Pod) []netip.Addr {
	if len(pod.Status.PodIPs) == 0 && pod.Status.PodIP != "" {
		return p.onePerFamily(func(int) string { return "status.podIP" }, []string{pod.Status.PodIP})
	}
	ips := make([]string, len(pod.Status.PodIPs))
	for i := range ips {
		ips[i] = pod.Status.PodIPs[i].IP
	}
	return p.onePerFamily(indexed("status.podIPs[%d].ip"), ips)
}

func ready(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func key(namespace, name string) cluster.Key {
	return cluster.Key{Namespace: intern(namespace), Name: name}
}
