package kube

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/cluster"
)

// Policies knows the names of the cluster's NetworkPolicies, and nothing else of
// them, so that it can be said of each that it is not enforced. It follows metadata
// alone. Where it is told to, it says so by an Event on each.
type Policies struct {
	client metadata.Interface
	core   rest.Interface
	log    *slog.Logger
	failed bool // logged; of the Reflector's goroutine

	mu     sync.Mutex
	known  map[cluster.Key]types.UID
	listed bool // known has what the API server had
	told   map[types.UID]bool
	speak  bool
	wake   chan struct{}
}

var policies = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}

// NewPolicies reads the kubeconfig and asks nothing of the server.
func NewPolicies(o Options) (*Policies, error) {
	c, all, err := o.connect()
	if err != nil {
		return nil, err
	}
	client, err := metadata.NewForConfig(metadata.ConfigFor(c))
	if err != nil {
		return nil, fmt.Errorf("kube-apiserver %s: %w", c.Host, err)
	}
	return &Policies{
		client: client, core: all[corev1.SchemeGroupVersion], log: o.Log, known: map[cluster.Key]types.UID{}, told: map[types.UID]bool{},
		wake: make(chan struct{}, 1),
	}, nil
}

// All gives the policies' keys, sorted. Before the API server has listed them for the
// first time it knows none.
func (p *Policies) All() (all []cluster.Key, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	keys := make([]cluster.Key, 0, len(p.known))
	for k := range p.known {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, cluster.Key.Compare)
	return keys, p.listed
}

// Speak says whether this process is the one of the cluster that writes the Events.
// Two that do for a moment write the same ones.
func (p *Policies) Speak(is bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.speak != is {
		p.speak = is
		p.wakeUp()
	}
}

func (p *Policies) wakeUp() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Run follows the policies until ctx ends.
func (p *Policies) Run(ctx context.Context) error {
	silent := logr.Discard()
	of := p.client.Resource(policies)
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := of.List(ctx, o)
			p.observe(ctx, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return of.Watch(ctx, o) },
	}
	r := cache.NewReflectorWithOptions(lw, &metav1.PartialObjectMetadata{}, p, cache.ReflectorOptions{
		Name: policies.Resource, Logger: &silent, Backoff: &backoff})
	go r.RunWithContext(klog.NewContext(ctx, silent))
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
			p.warn(ctx)
		}
	}
}

// observe logs the first of several errors in a row.
func (p *Policies) observe(ctx context.Context, err error) {
	if err != nil && !p.failed && ctx.Err() == nil {
		p.log.Warn("NetworkPolicies cannot be listed, so that nobody is told that they are not enforced", "err", err)
	}
	p.failed = err != nil
}

// warn writes the Events that are missing. What fails is tried again with the next
// change; an Event that is there already is as good as ours.
func (p *Policies) warn(ctx context.Context) {
	p.mu.Lock()
	silent := map[cluster.Key]types.UID{}
	for k, uid := range p.known {
		if p.speak && !p.told[uid] {
			silent[k] = uid
		}
	}
	p.mu.Unlock()
	for k, uid := range silent {
		err := p.core.Post().Namespace(k.Namespace).Resource("events").Body(notEnforced(k, uid)).Do(ctx).Error()
		if err != nil && !apierrors.IsAlreadyExists(err) {
			p.log.Warn("Event on a NetworkPolicy", "policy", k.String(), "err", err)
			continue
		}
		p.mu.Lock()
		p.told[uid] = true
		p.mu.Unlock()
	}
}

// notEnforced is an Event with a name of the policy's own, so that there is one
// however many write it.
func notEnforced(k cluster.Key, uid types.UID) *corev1.Event {
	now := metav1.Now()
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: k.Namespace, Name: k.Name + ".podlane-" + string(uid)},
		InvolvedObject: corev1.ObjectReference{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Namespace: k.Namespace, Name: k.Name, UID: uid},
		Type:           corev1.EventTypeWarning, Reason: "NotEnforced", Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Message: "Podlane does not enforce NetworkPolicies yet: the pods that this one selects accept all connections",
		Source:  corev1.EventSource{Component: "podlane"},
	}
}

// Add implements cache.ReflectorStore, as the methods after it do.
func (p *Policies) Add(o any) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(o.(*metav1.PartialObjectMetadata))
	return nil
}

func (p *Policies) add(m *metav1.PartialObjectMetadata) {
	p.known[cluster.Key{Namespace: m.Namespace, Name: m.Name}] = m.UID
	p.wakeUp()
}

// Update is Add.
func (p *Policies) Update(o any) error { return p.Add(o) }

// Delete forgets a policy.
func (p *Policies) Delete(o any) error {
	m := o.(*metav1.PartialObjectMetadata)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, cluster.Key{Namespace: m.Namespace, Name: m.Name})
	delete(p.told, m.UID)
	return nil
}

// Replace takes the list of all policies. Nobody sees a part of it: pods would take the
// fast path past a policy.
func (p *Policies) Replace(list []any, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.known)
	for _, o := range list {
		p.add(o.(*metav1.PartialObjectMetadata))
	}
	p.listed = true
	return nil
}

// Resync has no meaning here.
func (p *Policies) Resync() error { return nil }
