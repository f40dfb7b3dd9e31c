package demo

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/examples"
	"github.com/podlane/podlane/lab"
)

// perfNamespace has what the demo adds to the manifests.
const perfNamespace = "podlane-demo"

// scene is what the lab is made of.
type scene struct {
	objects *file.Objects
	source  string // of the manifests, for people
	nodes   int
	first   string // the node that clients are on
	second  string // the node that the measured server is on
}

// newScene adds to the manifests what the demo needs: a pod to ask from, and a
// server to measure with, behind a Service.
func newScene(given *file.Objects) (scene, error) {
	s := scene{objects: given, source: "FILE", nodes: 2, first: "n1", second: "n2"}
	if given == nil {
		builtIn, err := parse("nginx.yaml", examples.Nginx)
		if err != nil {
			return s, err
		}
		s.objects, s.source = builtIn, "examples/nginx.yaml"
	}
	if len(s.objects.Services) == 0 {
		return s, errors.New("the manifests have no Service: there is nothing to reach")
	}
	if names := nodeNames(s.objects); len(names) > 0 {
		s.nodes, s.first, s.second = len(names), names[0], names[min(1, len(names)-1)]
	}
	added, err := parse("demo", fmt.Appendf(nil, addition, perfNamespace, s.first, s.second))
	if err != nil {
		return s, err
	}
	s.objects = lab.Merge(s.objects, added)
	return s, nil
}

func nodeNames(o *file.Objects) []string {
	var names []string
	for _, n := range o.Nodes {
		names = append(names, n.Name)
	}
	slices.Sort(names)
	return names
}

// ours says that the demo itself, or the lab, has put a namespace there.
func (s scene) ours(namespace string) bool {
	return namespace == perfNamespace || namespace == "kube-system"
}

// addition is the client and the measured server: like the article's, a
// ReplicationController of one pod behind a Service with both ports.
const addition = `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: %[1]s}
spec:
  nodeName: %[2]s
  containers:
  - {name: client, image: busybox, command: [sleep, infinity]}
---
apiVersion: v1
kind: ReplicationController
metadata: {name: qperf-server, namespace: %[1]s}
spec:
  replicas: 1
  selector: {app: qperf-server}
  template:
    metadata: {labels: {app: qperf-server}}
    spec:
      nodeName: %[3]s
      containers:
      - name: qperf
        image: qperf
        args: ["--lp", "4000"]
        ports:
        - {containerPort: 4000}
---
apiVersion: v1
kind: Service
metadata: {name: qperf-server, namespace: %[1]s}
spec:
  selector: {app: qperf-server}
  ports:
  - {name: control, port: 4000}
  - {name: data-tcp, port: 4001}
  - {name: data-udp, port: 4001, protocol: UDP}
`

func parse(name string, text []byte) (*file.Objects, error) {
	objects, problems := file.Parse(name, text)
	if len(problems) > 0 {
		return nil, errors.New(problems[0].String())
	}
	return objects, nil
}

// target is one port of one Service of the manifests, with a pod behind it.
type target struct {
	service   lab.ServiceStatus
	port      int32
	protocol  corev1.Protocol
	podPort   int32
	pods      []lab.PodStatus
	clusterIP string
}

// targets gives the ports to reach: those of Services with a cluster IP and a
// ready pod.
func (d *demo) targets() []target {
	var ts []target
	for _, svc := range d.scene.objects.Services {
		st := d.serviceStatus(svc.Namespace, svc.Name)
		pods := d.podsOf(svc)
		if d.scene.ours(svc.Namespace) || st == nil || len(st.ClusterIPs) == 0 || len(pods) == 0 {
			continue
		}
		for _, p := range svc.Spec.Ports {
			ts = append(ts, target{
				service: *st, port: p.Port, protocol: protocolOf(p), podPort: d.podPort(svc, p), pods: pods, clusterIP: st.ClusterIPs[0],
			})
		}
	}
	return ts
}

func protocolOf(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

func (d *demo) serviceStatus(namespace, name string) *lab.ServiceStatus {
	for i, s := range d.status.Services {
		if s.Name == name && s.Namespace == namespaceOr(namespace) {
			return &d.status.Services[i]
		}
	}
	return nil
}

func namespaceOr(ns string) string {
	if ns == "" {
		return "default"
	}
	return ns
}

// podsOf gives the ready pods that the Service selects.
func (d *demo) podsOf(svc *corev1.Service) []lab.PodStatus {
	var pods []lab.PodStatus
	for _, p := range d.status.Pods {
		if p.Ready && p.Namespace == namespaceOr(svc.Namespace) && len(svc.Spec.Selector) > 0 && selects(svc.Spec.Selector, p.Labels) {
			pods = append(pods, p)
		}
	}
	return pods
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// podPort gives the number of a Service port's target on the pods.
func (d *demo) podPort(svc *corev1.Service, p corev1.ServicePort) int32 {
	if n := p.TargetPort.IntVal; n != 0 {
		return n
	}
	if name := p.TargetPort.StrVal; name != "" {
		return d.namedPort(svc, name, p.Port)
	}
	return p.Port
}

// namedPort looks a container port's name up in the templates that the Service
// selects.
func (d *demo) namedPort(svc *corev1.Service, name string, otherwise int32) int32 {
	for _, spec := range d.podSpecs(svc) {
		for _, c := range spec.Containers {
			for _, cp := range c.Ports {
				if cp.Name == name {
					return cp.ContainerPort
				}
			}
		}
	}
	return otherwise
}

func (d *demo) podSpecs(svc *corev1.Service) []corev1.PodSpec {
	var specs []corev1.PodSpec
	for _, o := range d.scene.objects.Deployments {
		if o.Namespace == svc.Namespace && selects(svc.Spec.Selector, o.Spec.Template.Labels) {
			specs = append(specs, o.Spec.Template.Spec)
		}
	}
	for _, o := range d.scene.objects.ReplicationControllers {
		if o.Spec.Template != nil && o.Namespace == svc.Namespace && selects(svc.Spec.Selector, o.Spec.Template.Labels) {
			specs = append(specs, o.Spec.Template.Spec)
		}
	}
	for _, o := range d.scene.objects.Pods {
		if o.Namespace == svc.Namespace && selects(svc.Spec.Selector, o.Labels) {
			specs = append(specs, o.Spec)
		}
	}
	return specs
}

// String names the target: "default/web:80".
func (t target) String() string {
	return fmt.Sprintf("%s/%s:%d", t.service.Namespace, t.service.Name, t.port)
}

// url gives the address of a host and port, by the target's protocol.
func (t target) url(host string, port int32) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	scheme := "http"
	if t.protocol == corev1.ProtocolUDP {
		scheme = "udp"
	}
	return fmt.Sprintf("%s://%s:%d", scheme, host, port)
}
