package kube

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/podlane/podlane/perf"
)

// Options say what to measure, and in which cluster.
type Options struct {
	Kubeconfig string // "" means as kubectl finds it
	Context    string
	Image      string
	Binary     string // podlane in the image; "" means /podlane
	From, To   string // nodes; "" means pick
	Further    []string
	IPv6       bool
	Timeout    time.Duration // for the pods to be ready; 0 means 2 minutes
	// Guard, where there is one, is called with the run's id before anything is made; what it gives is
	// called when everything is gone again. Between the two, something outside of this process should
	// watch over it, for the moment before there is a keeper.
	Guard    func(id string) (stop func(), err error)
	Config   perf.Config
	Progress func(string)
}

// margin is how long a run's objects may outlive its measuring before anybody may take them away.
const margin = 10 * time.Minute

func (o Options) plan() (plan, error) {
	for _, name := range o.Further {
		if !slices.Contains(Further, name) {
			return plan{}, fmt.Errorf("path %q: want %s", name, strings.Join(Further, ", "))
		}
	}
	if o.Image == "" {
		return plan{}, errors.New("no image")
	}
	lifetime := o.Config.Longest(3+len(o.Further)) + margin
	return plan{
		lifetime: lifetime,
		id:       strings.ToLower(rand.Text()[:8]), hostPort: 20000 + 4*mathrand.IntN(2000), image: o.Image, from: o.From, to: o.To, until: time.Now().Add(lifetime).Truncate(time.Second),
		nodePorts: drawNodePorts(),
		ipv6:      o.IPv6, nodePort: slices.Contains(o.Further, NodePort), balancer: slices.Contains(o.Further, Balancer), neighbour: slices.Contains(o.Further, SameNode), pullPolicy: corev1.PullIfNotPresent,
	}, nil
}

// Manifests gives what Run would make, and makes nothing. Without a cluster to ask, the nodes
// must be given.
func Manifests(ctx context.Context, o Options) (string, error) {
	p, err := o.plan()
	if err != nil {
		return "", err
	}
	if o.From == "" || o.To == "" {
		a, err := connect(o.Kubeconfig, o.Context)
		if err != nil {
			return "", err
		}
		if p.from, p.to, err = a.pick(ctx, o); err != nil {
			return "", err
		}
	}
	return p.render()
}

func (a *api) pick(ctx context.Context, o Options) (string, string, error) {
	nodes, err := a.nodes(ctx)
	if err != nil {
		return "", "", err
	}
	return pick(nodes, o.From, o.To)
}

// Run makes what it needs, measures, and takes it all away again, whatever happens; should this
// process be killed, the keeper in the cluster does.
func Run(ctx context.Context, o Options) (_ *perf.Evaluation, err error) {
	p, err := o.plan()
	if err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	a, err := connect(o.Kubeconfig, o.Context)
	if err != nil {
		return nil, err
	}
	if p.from, p.to, err = a.pick(ctx, o); err != nil {
		return nil, err
	}
	if err := a.cleanup(ctx, "", o.Progress); err != nil { // only what is over
		o.Progress("cannot look for what earlier runs left: " + err.Error())
	}
	if o.Guard != nil {
		stop, err := o.Guard(p.id)
		if err != nil {
			return nil, err
		}
		defer stop()
	}
	r := &run{api: a, plan: p, Options: o}
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.end()) }()
	if err := r.make(ctx); err != nil {
		return nil, err
	}
	return r.measure(ctx)
}

// run is one run.
type run struct {
	*api
	plan
	Options
	found   map[string]corev1.Pod // by role
	owner   *corev1.Namespace     // of everything
	release func()                // lets the keeper go
	counts  map[string]counter    // by node: podlane's own, where it is the network
}

// begin makes the namespace. Where that is refused nothing was made, and nothing is to be taken away.
func (r *run) begin(ctx context.Context) error {
	r.Progress(fmt.Sprintf("node %s to node %s, namespace %s", r.from, r.to, r.namespace()))
	err := r.createAll(ctx, r.first()[:1], nil)
	if err == nil || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return err
	}
	return errors.Join(err, r.end()) // the answer may have been lost
}

func (r *run) make(ctx context.Context) error {
	if err := r.createAll(ctx, r.first()[1:], nil); err != nil {
		return err
	}
	if err := r.wait(ctx); err != nil {
		return err
	}
	if err := r.hold(ctx); err != nil {
		return err
	}
	if err := r.createAll(ctx, r.rest(), r.owner); err != nil {
		return err
	}
	if err := r.createFront(ctx); err != nil {
		return err
	}
	return r.wait(ctx)
}

// drawNodePorts gives the first of two ports of Kubernetes' range.
func drawNodePorts() int { return 30100 + 2*mathrand.IntN(1300) }

const nodePortDraws = 10

// createFront makes the Service. Node ports that another one has are drawn anew: nothing but the API server's
// refusal tells of them. They are not left to the API server's choice, as the data port must be the same number
// inside and outside.
func (r *run) createFront(ctx context.Context) error {
	for draw := 1; ; draw++ {
		err := r.createAll(ctx, []runtime.Object{r.front()}, r.owner)
		if !nodePortTaken(err) || draw == nodePortDraws {
			return err
		}
		r.nodePorts = drawNodePorts()
	}
}

func nodePortTaken(err error) bool {
	return apierrors.IsInvalid(err) && strings.Contains(err.Error(), "already allocated")
}

func (r *run) createAll(ctx context.Context, objects []runtime.Object, owner *corev1.Namespace) error {
	for _, o := range objects {
		ns, isSpace := o.(*corev1.Namespace)
		if isSpace && owner != nil {
			ns.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Namespace", Name: owner.Name, UID: owner.UID}}
		}
		if err := r.patiently(ctx, func() error { return r.create(ctx, o) }); err != nil {
			return err
		}
		if isSpace && owner == nil {
			r.owner = ns
		}
	}
	return nil
}

// patiently tries again what a namespace just made may refuse for a moment: its default service account
// comes from a controller.
func (r *run) patiently(ctx context.Context, f func() error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		err := f()
		if err == nil || ctx.Err() != nil || time.Now().After(end) || !serviceAccountMissing(err) {
			return err
		}
	}
}

func serviceAccountMissing(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "serviceaccount") && strings.Contains(err.Error(), "not found")
}

// wait waits until every pod is ready, and says why one is not.
func (r *run) wait(ctx context.Context) error {
	end := time.Now().Add(r.Timeout)
	for {
		missing, fatal, err := r.look(ctx)
		switch {
		case err != nil:
			return err
		case fatal:
			return errors.New(missing)
		case missing == "":
			return nil
		case time.Now().After(end):
			return fmt.Errorf("not ready after %s: %s", r.Timeout, missing)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// look reads the pods, and gives what is still missing, if anything; fatal is what waiting will not mend.
func (r *run) look(ctx context.Context) (missing string, fatal bool, err error) {
	r.found = map[string]corev1.Pod{}
	var lines []string
	for _, ns := range []string{r.namespace(), r.hostNamespace()} {
		pods, err := r.pods(ctx, ns)
		if err != nil {
			return "", false, err
		}
		for _, p := range pods {
			r.found[p.Labels[RoleLabel]] = p
			reason, hopeless := notReady(p)
			if reason != "" {
				lines = append(lines, fmt.Sprintf("pod %s on %s: %s", p.Name, p.Spec.NodeName, reason))
			}
			fatal = fatal || hopeless
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "; "), fatal, nil
}

// notReady is why a pod cannot be used yet, and whether that will never change.
func notReady(p corev1.Pod) (reason string, hopeless bool) {
	if p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return strings.TrimSpace(fmt.Sprintf("ended (%s %s)", p.Status.Reason, p.Status.Message)), true
	}
	for _, c := range p.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "ContainerCreating" && w.Reason != "PodInitializing" {
			pull := slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}, w.Reason)
			return strings.TrimSpace(fmt.Sprintf("image %s: %s %s", c.Image, w.Reason, w.Message)), pull
		}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return "", false
		}
	}
	return "is " + strings.ToLower(string(p.Status.Phase)), false
}

// hold attaches to the keeper: from now on it deletes everything as soon as this connection ends.
func (r *run) hold(ctx context.Context) error {
	in, out := io.Pipe()
	holding, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var done sync.WaitGroup
	failed := make(chan error, 1)
	done.Go(func() { failed <- r.attach(holding, r.namespace(), keeper, in) })
	r.release = func() { _ = out.Close(); cancel(); done.Wait() }
	wrote := make(chan error, 1)
	go func() { _, err := out.Write([]byte("hold\n")); wrote <- err }()
	select {
	case err := <-failed:
		_ = in.Close()
		return fmt.Errorf("attach to the keeper: %w", plain(errors.Join(err, errors.New("it ended"))))
	case err := <-wrote:
		return err
	case <-time.After(10 * time.Second):
		return errors.New("attach to the keeper: no answer within 10 s")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// end takes everything away, and waits for it a little: the API server goes on by itself.
func (r *run) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := errors.Join(r.deleteNamespace(ctx, r.hostNamespace()), r.deleteNamespace(ctx, r.namespace()))
	if r.release != nil {
		r.release()
	}
	for ; err == nil && ctx.Err() == nil; time.Sleep(200 * time.Millisecond) {
		if r.namespaceGone(ctx, r.namespace()) && r.namespaceGone(ctx, r.hostNamespace()) {
			return nil
		}
	}
	if err == nil {
		r.Progress("namespace " + r.namespace() + " is being deleted; the cluster has not finished yet")
	}
	return err
}

// Cleanup takes away what runs have left behind: of the run given, of all ("all"), or what is over ("").
func Cleanup(ctx context.Context, o Options, id string) error {
	a, err := connect(o.Kubeconfig, o.Context)
	if err != nil {
		return err
	}
	return a.cleanup(ctx, id, o.Progress)
}

// Guard waits for the end of its input, which is the end of the process that started it, and cleans up after that one's run. An object that it
// was just making may appear a moment later.
func Guard(ctx context.Context, in io.Reader, o Options, id string) error {
	if last, err := io.ReadAll(in); err == nil && len(last) > 0 {
		return nil // the process ended in order, and has cleaned up itself
	}
	var err error
	for _, pause := range []time.Duration{0, time.Second, 3 * time.Second} {
		time.Sleep(pause)
		err = Cleanup(ctx, o, id)
	}
	return err
}

func (a *api) cleanup(ctx context.Context, id string, progress func(string)) error {
	spaces, err := a.namespaces(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, ns := range spaces {
		until, err := time.Parse(time.RFC3339, ns.Annotations[UntilAnnotation])
		over := err == nil && time.Now().After(until)
		if !over && id != "all" && (id == "" || ns.Labels[RunLabel] != id) {
			continue
		}
		if err := a.deleteNamespace(ctx, ns.Name); err != nil {
			errs = append(errs, err)
			continue
		}
		progress("deleted namespace " + ns.Name)
	}
	return errors.Join(errs...)
}

func (r *run) measure(ctx context.Context) (*perf.Evaluation, error) {
	var counted string
	r.counts, counted = r.counters(ctx)
	paths, err := r.paths(ctx)
	if err != nil {
		return nil, err
	}
	c := r.Config
	c.Paths, c.Idle, c.Binary = paths, true, r.Binary
	if c.Binary == "" {
		c.Binary = "/podlane"
	}
	e, err := perf.Evaluate(ctx, c)
	if e != nil {
		e.Notes = append(e.Notes, perf.Note{Name: "nodes", Value: r.from + " to " + r.to}, perf.Note{Name: "image", Value: r.image})
		if v := r.version(ctx); v != "" {
			e.Notes = append(e.Notes, perf.Note{Name: "Kubernetes", Value: v})
		}
		if counted != "" {
			e.Notes = append(e.Notes, perf.Note{Name: "podlane's counters", Value: counted})
		}
		if way := dataPath(e); way != "" {
			e.Notes = append(e.Notes, perf.Note{Name: "data path", Value: way})
		}
		e.Decompose([]perf.Part{
			{Name: "pod network", From: perf.NodeNode, To: perf.PodPod},
			{Name: "Service translation", From: perf.PodPod, To: perf.PodServicePod},
			{Name: "load balancer's address", From: perf.PodServicePod, To: Balancer},
			{Name: "NodePort translation", From: NodePod, To: NodePort},
		})
	}
	if err != nil && ctx.Err() == nil && unreachable(err) {
		err = fmt.Errorf("%w (a NetworkPolicy or a firewall between the two would look so)", err)
	}
	return e, err
}

func unreachable(err error) bool {
	text := err.Error()
	return strings.Contains(text, "timeout") || strings.Contains(text, "timed out") || strings.Contains(text, "refused") || strings.Contains(text, "no route") ||
		strings.Contains(text, "nothing was received")
}
