package lab

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab/control"
)

// dnsLabel is the label of the DNS server's pods, as kubeadm's.
var dnsLabel = map[string]string{"k8s-app": "kube-dns"}

// systemObjects are what a lab has before the user's objects: the nodes, unless
// the user gives some, and the Service of the cluster's DNS, unless the user
// gives that. The DNS pods are added by withDNSPods when the nodes are known.
func systemObjects(config control.Config, opts Options) *file.Objects {
	out := &file.Objects{Services: []*corev1.Service{dnsService(config)}}
	if opts.Objects == nil || len(opts.Objects.Nodes) == 0 {
		out.Nodes = control.Nodes(opts.Nodes)
	}
	return out
}

func dnsService(config control.Config) *corev1.Service {
	nearest, dual := corev1.ServiceTrafficDistributionPreferSameNode, corev1.IPFamilyPolicyPreferDualStack
	s := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "kube-dns", Labels: dnsLabel},
		Spec: corev1.ServiceSpec{
			Selector: dnsLabel, TrafficDistribution: &nearest, IPFamilyPolicy: &dual,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromString("dns")},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromString("dns-tcp")},
			},
		},
	}
	for _, f := range config {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, f.DNS.String())
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	return s
}

// withDNSPods adds a DNS server on each node. It stands for the DaemonSet of a
// real cluster.
func withDNSPods(objects *file.Objects) *file.Objects {
	out := *objects
	out.Pods = append([]*corev1.Pod{}, objects.Pods...)
	for _, n := range objects.Nodes {
		out.Pods = append(out.Pods, dnsPod(n.Name))
	}
	return &out
}

func dnsPod(node string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "podlane-dns-" + node, Labels: dnsLabel},
		Spec: corev1.PodSpec{
			NodeName: node, DNSPolicy: corev1.DNSDefault,
			Containers: []corev1.Container{{
				Name: "dns", Image: "podlane/dns",
				Ports: []corev1.ContainerPort{
					{Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 53},
					{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, ContainerPort: 53},
				},
			}},
		},
	}
}
