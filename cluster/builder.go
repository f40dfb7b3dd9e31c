package cluster

import (
	"reflect"
	"slices"
)

// Builder collects changes of objects and publishes Snapshots. The sources use
// one each; it is not safe for use by several goroutines. An object given to it
// belongs to it and must not be changed afterwards. An object equal to the one
// it has is no change: the old pointer stays.
type Builder struct {
	last       Snapshot
	nodes      map[Key]*Node
	namespaces map[Key]*Namespace
	pods       map[Key]*Pod
	services   map[Key]*Service
	slices     map[Key]*EndpointSlice
	cidrs      map[Key]*ServiceCIDR
	// endpoints has all slices, the pending changes included, of the Services some
	// slice of which was set or deleted.
	endpoints map[Key]map[Key]*EndpointSlice
}

// NewBuilder gives a Builder whose Snapshot is empty.
func NewBuilder() *Builder {
	b := &Builder{}
	b.clear()
	return b
}

func (b *Builder) clear() {
	b.nodes, b.namespaces, b.pods = map[Key]*Node{}, map[Key]*Namespace{}, map[Key]*Pod{}
	b.services, b.slices, b.cidrs = map[Key]*Service{}, map[Key]*EndpointSlice{}, map[Key]*ServiceCIDR{}
	b.endpoints = map[Key]map[Key]*EndpointSlice{}
}

// SetNode adds or replaces a node.
func (b *Builder) SetNode(n *Node) { put(b.last.Nodes, b.nodes, n.Key, n) }

// DeleteNode removes a node; one that is not there is no error. So with the
// other Delete methods.
func (b *Builder) DeleteNode(name string) { put(b.last.Nodes, b.nodes, Key{Name: name}, nil) }

// SetNamespace adds or replaces a namespace.
func (b *Builder) SetNamespace(n *Namespace) { put(b.last.Namespaces, b.namespaces, n.Key, n) }

// DeleteNamespace removes a namespace.
func (b *Builder) DeleteNamespace(name string) {
	put(b.last.Namespaces, b.namespaces, Key{Name: name}, nil)
}

// SetPod adds or replaces a pod.
func (b *Builder) SetPod(p *Pod) { put(b.last.Pods, b.pods, p.Key, p) }

// DeletePod removes a pod.
func (b *Builder) DeletePod(k Key) { put(b.last.Pods, b.pods, k, nil) }

// SetService adds or replaces a Service.
func (b *Builder) SetService(s *Service) { put(b.last.Services, b.services, s.Key, s) }

// DeleteService removes a Service. Its slices stay until they are deleted
// themselves.
func (b *Builder) DeleteService(k Key) { put(b.last.Services, b.services, k, nil) }

// SetServiceCIDR adds or replaces a range of cluster IPs.
func (b *Builder) SetServiceCIDR(c *ServiceCIDR) { put(b.last.ServiceCIDRs, b.cidrs, c.Key, c) }

// DeleteServiceCIDR removes a range of cluster IPs.
func (b *Builder) DeleteServiceCIDR(name string) {
	put(b.last.ServiceCIDRs, b.cidrs, Key{Name: name}, nil)
}

// SetSlice adds or replaces an endpoint slice.
func (b *Builder) SetSlice(s *EndpointSlice) { b.putSlice(s.Key, s) }

// DeleteSlice removes an endpoint slice.
func (b *Builder) DeleteSlice(k Key) { b.putSlice(k, nil) }

// put notes v (nil deletes) as the pending value of k, unless the published one
// is equal.
func put[V any](published Map[V], pending map[Key]*V, k Key, v *V) {
	old := published.Get(k)
	if v != nil && old != nil && reflect.DeepEqual(old, v) {
		v = old
	}
	if v == old {
		delete(pending, k)
		return
	}
	pending[k] = v
}

func (b *Builder) slice(k Key) *EndpointSlice {
	if s, ok := b.slices[k]; ok {
		return s
	}
	return b.last.Slices.Get(k)
}

func (b *Builder) putSlice(k Key, s *EndpointSlice) {
	if old := b.slice(k); old != nil {
		delete(b.slicesOf(old), k)
	}
	put(b.last.Slices, b.slices, k, s)
	if now := b.slice(k); now != nil {
		b.slicesOf(now)[k] = now
	}
}

// slicesOf gives the entry of b.endpoints for the Service of s.
func (b *Builder) slicesOf(s *EndpointSlice) map[Key]*EndpointSlice {
	svc := Key{s.Namespace, s.Service}
	of, ok := b.endpoints[svc]
	if !ok {
		of = map[Key]*EndpointSlice{}
		if published := b.last.Endpoints.Get(svc); published != nil {
			for _, s := range published.Slices {
				of[s.Key] = s
			}
		}
		b.endpoints[svc] = of
	}
	return of
}

// Pending says whether Publish would give something else than the last time.
func (b *Builder) Pending() bool {
	return len(b.nodes)+len(b.namespaces)+len(b.pods)+len(b.services)+len(b.slices)+len(b.cidrs) > 0
}

// Publish gives the Snapshot of all that was set so far. Without a change since
// the last call it gives an equal one.
func (b *Builder) Publish() *Snapshot {
	next := &Snapshot{
		Nodes:      b.last.Nodes.With(b.nodes),
		Namespaces: b.last.Namespaces.With(b.namespaces),
		Pods:       b.last.Pods.With(b.pods),
		Services:   b.last.Services.With(b.services),
		Slices:     b.last.Slices.With(b.slices),
		Endpoints:  b.last.Endpoints.With(b.changedEndpoints()),

		ServiceCIDRs: b.last.ServiceCIDRs.With(b.cidrs),
	}
	b.last = *next
	b.clear()
	return next
}

func (b *Builder) changedEndpoints() map[Key]*ServiceSlices {
	set := make(map[Key]*ServiceSlices, len(b.endpoints))
	for svc, of := range b.endpoints {
		old := b.last.Endpoints.Get(svc)
		switch next := sorted(of); {
		case old == nil && len(next) == 0:
		case old != nil && slices.Equal(old.Slices, next):
		case len(next) == 0:
			set[svc] = nil
		default:
			set[svc] = &ServiceSlices{next}
		}
	}
	return set
}

func sorted(of map[Key]*EndpointSlice) []*EndpointSlice {
	next := make([]*EndpointSlice, 0, len(of))
	for _, s := range of {
		next = append(next, s)
	}
	slices.SortFunc(next, func(a, b *EndpointSlice) int { return a.Key.Compare(b.Key) })
	return next
}
