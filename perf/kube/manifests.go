// Package kube measures the paths of a real cluster: it puts servers and clients on two nodes, tells
// perf how to run commands in them, and takes everything away again. It has no part in how
// anything is measured or judged, and of the cluster's network it asks for nothing but pods and a Service.
package kube

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/perf"
)

// What our objects carry. RunLabel has the run's id, and UntilAnnotation when it is over at the
// latest: from then on anybody's `perf cleanup` or `perf run` may take it away.
const (
	ManagedLabel    = "app.kubernetes.io/managed-by"
	Manager         = "podlane-perf"
	RunLabel        = "perf.podlane.io/run"
	RoleLabel       = "perf.podlane.io/role"
	UntilAnnotation = "perf.podlane.io/until"
)

// Names of the pods, which are their roles too.
const (
	keeper     = "keeper"
	nodeClient = "node-client"
	nodeServer = "node-server"
	podClient  = "pod-client"
	podServer  = "pod-server"
	neighbour  = "pod-neighbour" // a client on the servers' node
)

// Ports. Those on the host network are a run's own, four from plan.hostPort on, and so are the two NodePorts, from
// plan.nodePorts on.
const controlPort, dataPort = 4000, 4001

// plan is what one run puts into the cluster, decided before anything is made.
type plan struct {
	id         string
	image      string
	from, to   string        // nodes
	until      time.Time     // when it is over at the latest
	lifetime   time.Duration // from the start to then
	hostPort   int           // control port of the servers on the host network; the data port is the next
	ipv6       bool
	nodePort   bool
	nodePorts  int // for control and data
	balancer   bool
	neighbour  bool
	pullPolicy corev1.PullPolicy
}

func (p plan) namespace() string     { return "podlane-perf-" + p.id }
func (p plan) hostNamespace() string { return p.namespace() + "-host" }

func (p plan) meta(name, namespace string) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name: name, Namespace: namespace,
		Labels: map[string]string{ManagedLabel: Manager, RunLabel: p.id, RoleLabel: name},
	}
}

// first are the objects that are made before all others. The first namespace owns everything:
// what lies in it, and the second one, which only exists because pods on the host network are not
// allowed in a restricted namespace. The keeper in it deletes it when the command that
// made it is gone, by whatever death.
func (p plan) first() []runtime.Object {
	return []runtime.Object{p.space(p.namespace(), "restricted"), p.account(), p.role(), p.binding(), p.keeper()}
}

// rest are all others but the Service.
func (p plan) rest() []runtime.Object {
	all := []runtime.Object{
		p.space(p.hostNamespace(), "privileged"),
		p.pod(podServer, p.to, false), p.pod(podClient, p.from, false),
		p.pod(nodeServer, p.to, true), p.pod(nodeClient, p.from, true),
	}
	if p.neighbour {
		all = append(all, p.pod(neighbour, p.to, false))
	}
	return all
}

// all are the objects in the order in which they are made.
func (p plan) all() []runtime.Object { return append(append(p.first(), p.rest()...), p.front()) }

func (p plan) space(name, security string) *corev1.Namespace {
	ns := &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}, ObjectMeta: p.meta(name, "")}
	delete(ns.Labels, RoleLabel)
	ns.Labels["pod-security.kubernetes.io/enforce"] = security
	ns.Annotations = map[string]string{UntilAnnotation: p.until.UTC().Format(time.RFC3339)}
	return ns
}

func (p plan) account() *corev1.ServiceAccount {
	return &corev1.ServiceAccount{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"}, ObjectMeta: p.meta(keeper, p.namespace())}
}

// role lets the keeper delete the namespace it is in: to the API server a Namespace lies in itself.
func (p plan) role() *rbacv1.Role {
	return &rbacv1.Role{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "Role"}, ObjectMeta: p.meta(keeper, p.namespace()),
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"namespaces"}, ResourceNames: []string{p.namespace()}, Verbs: []string{"delete"}}},
	}
}

func (p plan) binding() *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "RoleBinding"}, ObjectMeta: p.meta(keeper, p.namespace()),
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: keeper},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: keeper, Namespace: p.namespace()}},
	}
}

// keeper waits for the end of its standard input, which is the end of the command that attached to it.
func (p plan) keeper() *corev1.Pod {
	pod := p.pod(keeper, p.from, false)
	pod.Spec.AutomountServiceAccountToken, pod.Spec.ActiveDeadlineSeconds = nil, nil // it ends by itself
	pod.Spec.ServiceAccountName = keeper
	c := &pod.Spec.Containers[0]
	c.Args = []string{"perf", "keeper", p.namespace(), "--until", p.until.UTC().Format(time.RFC3339)}
	c.Stdin, c.StdinOnce, c.ReadinessProbe, c.Ports = true, true, nil, nil
	return pod
}

// pod makes one that serves; a client's server is only there to keep it running, and to answer in a hairpin.
func (p plan) pod(role, node string, host bool) *corev1.Pod {
	yes, no, user, grace := true, false, int64(65532), int64(1)
	deadline := int64(p.lifetime.Seconds())
	namespace, control := p.namespace(), controlPort
	if host {
		namespace, control = p.hostNamespace(), p.hostPort
	}
	if role == nodeClient {
		control += 2 // on a cluster of one node it shares the host's ports with the server
	}
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: p.meta(role, namespace)}
	pod.Spec = corev1.PodSpec{
		NodeName: node, HostNetwork: host, RestartPolicy: corev1.RestartPolicyNever, ActiveDeadlineSeconds: &deadline,
		TerminationGracePeriodSeconds: &grace, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
		Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: "podlane", Image: p.image, ImagePullPolicy: p.pullPolicy,
			Args: []string{"perf", "server", "--lp", fmt.Sprint(control)},
			ReadinessProbe: &corev1.Probe{
				ProbeHandler:  corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(control)}},
				PeriodSeconds: 1,
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}
	if role == podServer { // on the host network, ports named here would be taken from all other pods of the node
		pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: controlPort}, {ContainerPort: dataPort}, {ContainerPort: dataPort, Protocol: corev1.ProtocolUDP},
			{ContainerPort: perf.ApartData}, {ContainerPort: perf.ApartData, Protocol: corev1.ProtocolUDP}}
	}
	return pod
}

func (p plan) front() *corev1.Service {
	s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: p.meta("server", p.namespace())}
	s.Spec.Selector = map[string]string{RunLabel: p.id, RoleLabel: podServer}
	port := func(name string, number, node int32, protocol corev1.Protocol) {
		if !p.nodePort {
			node = 0
		}
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: name, Port: number, NodePort: node, Protocol: protocol, TargetPort: intstr.FromInt32(number)})
	}
	control, data := int32(p.nodePorts), int32(p.nodePorts+1)
	port("control", controlPort, control, corev1.ProtocolTCP)
	port("data-tcp", dataPort, 0, corev1.ProtocolTCP)
	port("data-udp", dataPort, 0, corev1.ProtocolUDP)
	if p.nodePort { // the server tells the port it has opened, so it is the same number everywhere
		s.Spec.Type = corev1.ServiceTypeNodePort
		port("node-tcp", data, data, corev1.ProtocolTCP)
		port("node-udp", data, data, corev1.ProtocolUDP)
	}
	if p.balancer {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
	}
	if p.ipv6 {
		policy := corev1.IPFamilyPolicySingleStack
		s.Spec.IPFamilyPolicy, s.Spec.IPFamilies = &policy, []corev1.IPFamily{corev1.IPv6Protocol}
	}
	return s
}

// render writes the objects as YAML documents.
func (p plan) render() (string, error) {
	var text strings.Builder
	for _, o := range p.all() {
		doc, err := yaml.Marshal(o)
		if err != nil {
			return "", err
		}
		text.WriteString("---\n")
		for line := range strings.Lines(string(doc)) {
			if t := strings.TrimSpace(line); t != "status: {}" && t != "resources: {}" && !strings.HasPrefix(t, "creationTimestamp:") && t != "loadBalancer: {}" && t != "status:" && t != "spec: {}" {
				text.WriteString(line)
			}
		}
	}
	return text.String(), nil
}
