package control

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// allPods gives the pods that there should be, as copies, in order.
func allPods(of *file.Objects) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, p := range of.Pods {
		p = p.DeepCopy()
		if p.UID == "" {
			p.UID = types.UID(digest(12, p.Namespace, p.Name, p.Spec))
		}
		pods = append(pods, p)
	}
	for _, w := range workloads(of) {
		// A dump of a cluster has the pods of its workloads too.
		have := 0
		for _, p := range of.Pods {
			if p.Namespace == w.key.Namespace && len(p.OwnerReferences) > 0 && len(w.matches) > 0 && matches(w.matches, p.Labels) {
				have++
			}
		}
		want := 1
		if w.replicas != nil {
			want = int(*w.replicas)
		}
		for i := have; i < want; i++ {
			pods = append(pods, w.pod(i))
		}
	}
	return byKey(pods)
}

// pod makes the i-th pod. Its name depends on the template, so that another
// template makes other pods.
func (w workload) pod(i int) *corev1.Pod {
	name := w.key.Name
	if w.kind == "Deployment" {
		name += "-" + digest(9, w.template)
	}
	name = strings.Trim(name[:min(len(name), 57)], "-.") + "-" + digest(5, w.key, w.kind, w.template, i)
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: *w.template.ObjectMeta.DeepCopy(),
		Spec:       *w.template.Spec.DeepCopy(),
	}
	isController := true
	p.Name, p.Namespace, p.UID = name, w.key.Namespace, types.UID(digest(12, w.key, name))
	p.OwnerReferences = []metav1.OwnerReference{{Kind: w.kind, Name: w.key.Name, Controller: &isController}}
	return p
}

// place gives each pod without a node the one with the fewest pods of its owner,
// then the fewest pods, then the first. A pod that none suits stays without.
func place(pods []*corev1.Pod, nodes []*corev1.Node, observed map[cluster.Key]Observed) {
	type count struct{ owner, node string }
	have := map[count]int{}
	note := func(p *corev1.Pod) {
		have[count{ownerOf(p), p.Spec.NodeName}]++
		have[count{"", p.Spec.NodeName}]++
	}
	var open []*corev1.Pod
	for _, p := range pods {
		if p.Spec.NodeName == "" {
			p.Spec.NodeName = observed[keyOf(p)].Node
		}
		if p.Spec.NodeName == "" {
			open = append(open, p)
			continue
		}
		note(p)
	}
	for _, p := range open {
		fit := slices.DeleteFunc(byKey(nodes), func(n *corev1.Node) bool {
			return n.Spec.Unschedulable || !matches(p.Spec.NodeSelector, n.Labels)
		})
		if len(fit) == 0 {
			continue
		}
		p.Spec.NodeName = slices.MinFunc(fit, func(a, b *corev1.Node) int {
			return cmp.Or(have[count{ownerOf(p), a.Name}]-have[count{ownerOf(p), b.Name}], have[count{"", a.Name}]-have[count{"", b.Name}])
		}).Name
		note(p)
	}
}

// ownerOf names a pod's workload, or is "".
func ownerOf(p *corev1.Pod) string {
	if len(p.OwnerReferences) == 0 {
		return ""
	}
	return p.Namespace + "/" + p.OwnerReferences[0].Kind + "/" + p.OwnerReferences[0].Name
}

func setStatus(p *corev1.Pod, o Observed, nodes []*corev1.Node) {
	ips := o.IPs
	i := slices.IndexFunc(nodes, func(n *corev1.Node) bool { return n.Name == p.Spec.NodeName })
	if p.Spec.HostNetwork && i >= 0 {
		node := convert.Node(nodes[i])
		ips = slices.DeleteFunc([]netip.Addr{node.Address(false), node.Address(true)}, func(a netip.Addr) bool { return !a.IsValid() })
		p.Status.HostIP = ips[0].String()
	}
	if len(ips) > 0 {
		p.Status.PodIPs = nil
		for _, a := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
		p.Status.PodIP = p.Status.PodIPs[0].IP
	}
	ready := corev1.ConditionFalse
	if o.Ready {
		ready = corev1.ConditionTrue
	}
	p.Status.Phase = cmp.Or(p.Status.Phase, corev1.PodRunning)
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
}
