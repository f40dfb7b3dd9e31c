package kube

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/cluster"
)

// store takes the objects of one kind from a Reflector, which is the part of an
// informer that lists, watches and resumes. It converts each object at once and
// keeps none of the API's: the Builder is the only copy.
type store struct {
	*Source
	kind
	keys   map[cluster.Key]bool // what the server has
	synced bool
	// versions are those of keys, where another store follows the same resource with
	// other labels (see claim).
	versions map[cluster.Key]uint64
}

// converted is an object on its way into the Builder.
type converted struct {
	key     cluster.Key
	version string
	object  setter // nil: not in a Snapshot
}

// Transformer makes the Reflector convert while it streams the initial objects,
// so that these are never in memory all at once in the API's form.
func (s *store) Transformer() cache.TransformFunc { return s.transform }

func (s *store) transform(o any) (any, error) {
	if c, ok := o.(converted); ok {
		return c, nil
	}
	m, err := meta.Accessor(o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.resource, err)
	}
	return converted{cluster.Key{Namespace: m.GetNamespace(), Name: m.GetName()}, m.GetResourceVersion(), s.convert(o)}, nil
}

// Add implements cache.ReflectorStore, as the methods after it do.
func (s *store) Add(o any) error {
	c, err := s.transform(o)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(c.(converted))
	if s.builder.Pending() { // else nothing of it is in a Snapshot: a node's heartbeat
		s.wakeUp()
	}
	return nil
}

// Update is Add.
func (s *store) Update(o any) error { return s.Add(o) }

// Delete removes an object.
func (s *store) Delete(o any) error {
	m, err := meta.Accessor(o)
	if err != nil {
		return fmt.Errorf("%s: %w", s.resource, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(cluster.Key{Namespace: m.GetNamespace(), Name: m.GetName()})
	s.wakeUp()
	return nil
}

// Replace takes the list of all objects: at the start, and when the server can no
// longer tell what changed since.
func (s *store) Replace(list []any, _ string) error {
	items := make([]converted, len(list))
	there := make(map[cluster.Key]bool, len(list))
	for i, o := range list {
		c, err := s.transform(o)
		if err != nil {
			return err
		}
		items[i] = c.(converted)
		there[items[i].key] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.keys {
		if !there[k] {
			s.drop(k)
		}
	}
	for _, c := range items {
		s.put(c)
	}
	s.synced = true
	s.wakeUp()
	return nil
}

// Resync has no meaning here.
func (s *store) Resync() error { return nil }

func (s *store) put(c converted) {
	if !s.claim(c) {
		return
	}
	s.keys[c.key] = true
	if c.object == nil {
		s.remove(s.builder, c.key)
		return
	}
	c.object.set(s.builder)
}

// claim says whether this store has an object, and not another one that follows
// the same resource. One whose labels change goes from one watch to another, and
// which of them tells first is chance: the greater resource version counts (they
// are numbers: KEP-5504), and who has lost an object no longer deletes it.
func (s *store) claim(c converted) bool {
	for _, o := range s.stores {
		if o == s || o.resource != s.resource {
			continue
		}
		version, _ := strconv.ParseUint(c.version, 10, 64)
		if o.keys[c.key] && o.versions[c.key] > version {
			return false
		}
		delete(o.keys, c.key)
		delete(o.versions, c.key)
		if s.versions == nil {
			s.versions = map[cluster.Key]uint64{}
		}
		s.versions[c.key] = version
	}
	return true
}

func (s *store) drop(k cluster.Key) {
	if !s.keys[k] {
		return
	}
	delete(s.keys, k)
	delete(s.versions, k)
	s.remove(s.builder, k)
}

// run follows the kind until ctx ends.
func (s *store) run(ctx context.Context) {
	silent := logr.Discard() // what matters is reported by observe
	r := cache.NewReflectorWithOptions(s.listWatch(), s.example, s, cache.ReflectorOptions{
		Name: s.resource, Logger: &silent, Backoff: &backoff})
	r.RunWithContext(klog.NewContext(ctx, silent))
}

// without says that it has to go without an optional kind, which the server does
// not have or does not give: nothing waits for it any longer.
func (s *store) without(err error) bool {
	if !s.optional || !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
	s.wakeUp()
	return true
}

// emptyWatch is what client-go gives instead of an error where the connection was
// closed or timed out before the answer.
var emptyWatch = reflect.TypeOf(watch.NewEmptyWatch())

var errClosed = errors.New("the connection was closed before the answer")

// listWatch is the requests of the kind, whose errors are noted.
func (s *store) listWatch() *cache.ListWatch {
	lw := cache.NewFilteredListWatchFromClient(s.clients[s.group], s.resource, metav1.NamespaceAll, s.selectors)
	list, watchFrom := lw.ListWithContextFunc, lw.WatchFuncWithContext
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			l, err := list(ctx, o)
			if !s.without(err) {
				s.observe(ctx, s.resource, "list", err)
			}
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := watchFrom(ctx, o)
			switch {
			case err == nil && reflect.TypeOf(w) == emptyWatch:
				s.observe(ctx, s.resource, "watch", errClosed)
			case !noStreaming(o, err) && !s.without(err):
				s.observe(ctx, s.resource, "watch", err)
			}
			return w, err
		},
	}
}
