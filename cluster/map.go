package cluster

import (
	"cmp"
	"iter"
	"slices"
)

// shards is the number of parts of a Map. With 30,000 objects a part has about
// 30 of them, so a change copies 30 entries and 1,024 pointers, not 30,000.
const shards = 1024

// Key names an object. Namespace is empty for objects without one, such as
// nodes.
type Key struct{ Namespace, Name string }

// String gives "namespace/name", or "name" where there is no namespace.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// Compare orders keys by namespace, then name.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Namespace, o.Namespace), cmp.Compare(k.Name, o.Name))
}

// Map is an immutable map from Key to *V. With makes a changed copy that shares
// all it can with the old one, and Changed finds the differences of two related
// maps in time that grows with the changes, not with the size: this is what
// makes a change of one Service among thirty thousand cheap. The zero Map is
// empty. A value is never nil and never changed after it was put into a Map.
type Map[V any] struct {
	parts *[shards]*part[V]
	n     int
}

// part is one shard. It is a pointer to a struct, since maps cannot be compared
// for identity.
type part[V any] struct{ m map[Key]*V }

// Change is one difference between two Maps. Old is nil for a new key, New is
// nil for a deleted one.
type Change[V any] struct {
	Key      Key
	Old, New *V
}

// shardOf is FNV-1a over the key: the same in every process, so that what is
// built from the same objects is laid out the same.
func shardOf(k Key) int {
	h := uint32(2166136261)
	for i := range len(k.Namespace) {
		h = (h ^ uint32(k.Namespace[i])) * 16777619
	}
	h = (h ^ '/') * 16777619
	for i := range len(k.Name) {
		h = (h ^ uint32(k.Name[i])) * 16777619
	}
	return int((h ^ h>>16) % shards)
}

// Len gives the number of keys.
func (m Map[V]) Len() int { return m.n }

// Get gives the value of k, or nil.
func (m Map[V]) Get(k Key) *V {
	if m.parts == nil {
		return nil
	}
	return m.part(shardOf(k))[k]
}

// All walks the map in no particular order.
func (m Map[V]) All() iter.Seq2[Key, *V] {
	return func(yield func(Key, *V) bool) {
		if m.parts == nil {
			return
		}
		for s := range shards {
			for k, v := range m.part(s) {
				if !yield(k, v) {
					return
				}
			}
		}
	}
}

// Keys gives the keys in order.
func (m Map[V]) Keys() []Key {
	keys := make([]Key, 0, m.n)
	for k := range m.All() {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, Key.Compare)
	return keys
}

// Part gives the i-th of n maps of which each has what the one before has and some
// more, and the last one all.
func (m Map[V]) Part(i, n int) Map[V] {
	if m.parts == nil || i == n {
		return m
	}
	part := Map[V]{parts: new([shards]*part[V])}
	for s := range shards * i / n {
		part.parts[s] = m.parts[s]
		part.n += len(m.part(s))
	}
	return part
}

// With gives a copy in which every key of set has its value there, or is absent
// where that value is nil.
func (m Map[V]) With(set map[Key]*V) Map[V] {
	if len(set) == 0 {
		return m
	}
	next := Map[V]{parts: new([shards]*part[V]), n: m.n}
	if m.parts != nil {
		*next.parts = *m.parts
	}
	var copied [shards]bool
	for k, v := range set {
		s := shardOf(k)
		if !copied[s] {
			next.parts[s] = &part[V]{copyPart(m.part(s), 1+len(set)/shards)}
			copied[s] = true
		}
		next.set(s, k, v)
	}
	return next
}

func copyPart[V any](p map[Key]*V, more int) map[Key]*V {
	c := make(map[Key]*V, len(p)+more)
	for k, v := range p {
		c[k] = v
	}
	return c
}

func (m *Map[V]) set(shard int, k Key, v *V) {
	p := m.parts[shard].m
	if p[k] != nil {
		m.n--
	}
	delete(p, k)
	if v != nil {
		p[k] = v
		m.n++
	}
}

// Changed walks the keys whose value in m is another one (another pointer) than
// in old, in no particular order.
func (m Map[V]) Changed(old Map[V]) iter.Seq[Change[V]] {
	return func(yield func(Change[V]) bool) {
		if m.parts == old.parts {
			return
		}
		for s := range shards {
			if old.shard(s) != m.shard(s) && !partChanges(old.part(s), m.part(s), yield) {
				return
			}
		}
	}
}

func (m Map[V]) shard(s int) *part[V] {
	if m.parts == nil {
		return nil
	}
	return m.parts[s]
}

func (m Map[V]) part(s int) map[Key]*V {
	if p := m.shard(s); p != nil {
		return p.m
	}
	return nil
}

func partChanges[V any](old, now map[Key]*V, yield func(Change[V]) bool) bool {
	for k, v := range now {
		if o := old[k]; o != v && !yield(Change[V]{k, o, v}) {
			return false
		}
	}
	for k, o := range old {
		if now[k] == nil && !yield(Change[V]{k, o, nil}) {
			return false
		}
	}
	return true
}
