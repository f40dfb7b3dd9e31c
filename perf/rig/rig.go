// Package rig measures the paths of labs: it brings up a lab for each overlay to be compared, all at
// the same time so that their rounds can be interleaved, and gives perf the ways to measure. It
// has no part in how anything is measured or judged.
package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/perf"
)

// Further paths that can be asked for.
const (
	NodePod  = "node-pod"  // from a node to a pod on the other
	SameNode = "same-node" // from pod to pod on one node
	Hairpin  = "hairpin"   // from a pod through a Service to itself
	NodePort = "node-port" // from a node to another node's port of the Service
	PodNode  = "pod-node"  // from a pod to the other node itself
	Balancer = "balancer"  // from pod to pod through the Service's load balancer address
)

// Further lists them.
var Further = []string{NodePod, PodNode, SameNode, Hairpin, NodePort, Balancer}

// Options say what to measure.
type Options struct {
	Name     string   // of the labs, each followed by a number
	Overlays []string // Layouts; none means vxlan and direct
	Backends []string // of the service proxy; none means auto
	Services []int    // beside the one that is measured: of each number a lab; none means 0
	Families string   // of the labs: ipv4 or ipv6; "" means ipv4
	Further  []string // further paths
	Config   perf.Config
	Progress func(string) // may be nil
}

const (
	namespace = "podlane-perf"
	service   = "qperf-server"
	near, far = "n1", "n2" // the clients' node and the servers'
)

// Names are those of the labs that Run will make: what a guard must take down.
func (o Options) Names() []string {
	var names []string
	layouts, _ := o.layouts() // what is wrong with them, Run says
	for i := range layouts {
		names = append(names, o.labName(i))
	}
	return names
}

// labName is a number's, as a lab's name is short.
func (o Options) labName(i int) string { return fmt.Sprintf("%s-%d", o.Name, i+1) }

func (o Options) overlays() []string {
	if len(o.Overlays) == 0 {
		return []string{string(overlay.Direct), string(overlay.VXLAN)}
	}
	return o.Overlays
}

func (o Options) check() error {
	for _, name := range o.Further {
		if !slices.Contains(Further, name) {
			return fmt.Errorf("path %q: want %s", name, strings.Join(Further, ", "))
		}
	}
	if o.Families != "" && o.Families != "ipv4" && o.Families != "ipv6" {
		return fmt.Errorf("ip family %q: want ipv4 or ipv6", o.Families)
	}
	return nil
}

// Run brings the labs up, measures, and takes them down whatever happens.
func Run(ctx context.Context, o Options) (_ *perf.Evaluation, err error) {
	layouts, err := o.layouts()
	if err = cmp.Or(err, o.check()); err != nil {
		return nil, err
	}
	r := &rig{Options: o, stops: nil}
	if r.Progress == nil {
		r.Progress = func(string) {}
	}
	if r.self, err = os.Executable(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.down()) }()
	for i, l := range layouts {
		if err := r.up(ctx, o.labName(i), l); err != nil {
			return nil, err
		}
	}
	return r.measure(ctx)
}

// rig is one run.
type rig struct {
	Options
	self  string
	labs  []*bench
	stops []func()
}

// A bench is one lab with what is measured in it.
type bench struct {
	layout  layout
	client  *lab.Client
	status  *lab.Status
	server  lab.PodStatus
	service lab.ServiceStatus
}

func (r *rig) up(ctx context.Context, name string, l layout) error {
	r.Progress(fmt.Sprintf("bringing up a lab of two nodes, overlay %s", l.name))
	families := cmp.Or(r.Families, "ipv4")
	objects, problems := file.Parse("perf", fmt.Appendf(nil, manifests, namespace, near, far, service, balancers[families]))
	if len(problems) > 0 {
		return errors.New(problems[0].String())
	}
	objects.Services = append(objects.Services, others(l.services)...)
	client, err := lab.Up(ctx, lab.Options{
		Name: name, Nodes: 2, Overlay: string(l.overlay), ProxyBackend: l.backend, FastPath: string(l.fastPath), SocketLB: string(l.socketLB), Families: families, Objects: objects,
		Timeout: time.Minute + time.Duration(l.services)*20*time.Millisecond,
	})
	b := &bench{layout: l, client: client}
	if client != nil {
		r.labs = append(r.labs, b)
	}
	if err != nil {
		return fmt.Errorf("lab %s: %w", name, err)
	}
	return b.look(ctx)
}

// look finds the server and its Service.
func (b *bench) look(ctx context.Context) (err error) {
	if b.status, err = b.client.Status(ctx); err != nil {
		return err
	}
	for _, p := range b.status.Pods {
		if p.Namespace == namespace && p.Labels["app"] == service {
			b.server = p
		}
	}
	for _, s := range b.status.Services {
		if s.Namespace == namespace && s.Name == service {
			b.service = s
		}
	}
	if len(b.server.IPs) == 0 || len(b.service.ClusterIPs) == 0 {
		return errors.New("the lab has no server to measure with")
	}
	return nil
}

// down ends the servers on nodes, then the labs.
func (r *rig) down() (err error) {
	for _, stop := range r.stops {
		stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, b := range r.labs {
		if e := b.client.Down(ctx); e != nil && !errors.Is(e, lab.ErrNoLab) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (r *rig) measure(ctx context.Context) (*perf.Evaluation, error) {
	if err := r.serve(ctx); err != nil {
		return nil, err
	}
	c := r.Config
	c.Binary, c.Idle = r.self, true
	var err error
	if c.Paths, err = r.paths(ctx); err != nil {
		return nil, err
	}
	e, err := perf.Evaluate(ctx, c)
	if e != nil {
		e.Notes = append(e.Notes,
			perf.Note{Name: "nodes", Value: "network namespaces on one machine, joined by a bridge"},
			perf.Note{Name: "overlays", Value: strings.Join(r.overlays(), ", ")},
			perf.Note{Name: "Service proxy", Value: r.backends()},
			perf.Note{Name: "Services", Value: r.crowds()})
		e.Decompose(r.parts())
	}
	return e, err
}

// backends are those that the agents use; an agent records the one that is not the default.
func (r *rig) backends() string {
	var all []string
	for _, b := range r.labs {
		name := string(agent.NFTables)
		if text, err := os.ReadFile(filepath.Join(b.status.Dir, "nodes", near, "state", "proxy-backend")); err == nil {
			name = strings.TrimSpace(string(text))
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return strings.Join(all, ", ")
}

// crowds are how many Services each lab has.
func (r *rig) crowds() string {
	var all []string
	for _, b := range r.labs {
		if n := strconv.Itoa(len(b.status.Services)); !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return strings.Join(all, ", ")
}

// others are Services that nobody asks. Each leads to the server too, from an address of its own.
func others(n int) (all []*corev1.Service) {
	for i := range n {
		s := &corev1.Service{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("other-", i), Namespace: namespace}}
		s.Spec.Selector = map[string]string{"app": service}
		s.Spec.Ports = []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(4000), Protocol: corev1.ProtocolTCP}}
		all = append(all, s)
	}
	return all
}

// serve runs the servers on nodes: of the path from node to node in the first lab, and where paths from pods to nodes were asked for, in all.
func (r *rig) serve(ctx context.Context) error {
	for i, b := range r.labs {
		if i > 0 && (b.layout.flannel != "" || !slices.Contains(r.Further, PodNode)) {
			continue
		}
		if err := r.serveIn(ctx, b.client); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) serveIn(ctx context.Context, client *lab.Client) error {
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = client.Exec(serving, "node/"+far, []string{r.self, "perf", "server", "--lp", "4000"}, lab.Stdio{})
	}()
	r.stops = append(r.stops, func() { stop(); <-ended })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		_, err := client.Output(ctx, "node/"+far, r.self, "perf", "client", "--lp", "4000", "localhost", "conf")
		if err == nil || time.Now().After(end) || ctx.Err() != nil {
			return err
		}
	}
}

// balancers are the load balancer's address, by the labs' families. No packet for it ever leaves a node.
var balancers = map[string]string{"ipv4": "198.51.100.10", "ipv6": "2001:db8:198::10"}

// manifests: namespace, the clients' node, the server's node, the Service, its load balancer's address. The two ports that
// a NodePort needs are the same number everywhere, because a server tells its client the port it has opened.
const manifests = `
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: %[1]s}
spec:
  nodeName: %[2]s
  containers:
  - {name: client, image: busybox, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: neighbour, namespace: %[1]s}
spec:
  nodeName: %[3]s
  containers:
  - {name: client, image: busybox, command: [sleep, infinity]}
---
apiVersion: v1
kind: Pod
metadata: {name: server, namespace: %[1]s, labels: {app: %[4]s}}
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
metadata: {name: %[4]s, namespace: %[1]s}
spec:
  type: LoadBalancer
  selector: {app: %[4]s}
  ports:
  - {name: control, port: 4000, nodePort: 30400}
  - {name: data-tcp, port: 4001}
  - {name: data-udp, port: 4001, protocol: UDP}
  - {name: node-tcp, port: 30401, nodePort: 30401}
  - {name: node-udp, port: 30401, nodePort: 30401, protocol: UDP}
status:
  loadBalancer:
    ingress: [{ip: "%[5]s"}]
`
