package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// version is a Map and the plain map that it must equal.
type version struct {
	m    Map[int]
	want map[Key]*int
}

// TestMap_againstPlainMap makes random changes and compares every version, the
// old ones too, with a plain map, and the changes between any two of them.
func TestMap_againstPlainMap(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		keys := randomKeys(r, 1+r.IntN(3000))
		versions := []version{{want: map[Key]*int{}}}
		for range 30 {
			last := versions[len(versions)-1]
			set := map[Key]*int{}
			next := maps.Clone(last.want)
			for range r.IntN(len(keys)) {
				k := keys[r.IntN(len(keys))]
				set[k] = randomValue(r, last.want[k])
			}
			for k, v := range set {
				next[k] = v
				if v == nil {
					delete(next, k)
				}
			}
			versions = append(versions, version{last.m.With(set), next})
		}
		for i, v := range versions {
			v.check(t, keys)
			old := versions[r.IntN(len(versions))]
			checkChanged(t, old, v)
			checkChanged(t, versions[max(0, i-1)], v)
		}
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
}

// randomValue deletes, keeps the pointer, or gives a new one.
func randomValue(r *rand.Rand, old *int) *int {
	switch r.IntN(4) {
	case 0:
		return nil
	case 1:
		return old
	}
	v := r.IntN(5)
	return &v
}

func randomKeys(r *rand.Rand, n int) []Key {
	keys := make([]Key, n)
	for i := range keys {
		keys[i] = Key{Name: fmt.Sprint("o", r.IntN(2*n))}
		if r.IntN(3) > 0 {
			keys[i].Namespace = fmt.Sprint("ns", r.IntN(5))
		}
	}
	return keys
}

func (v version) check(t *testing.T, keys []Key) {
	t.Helper()
	if v.m.Len() != len(v.want) {
		t.Fatalf("Len %d, want %d", v.m.Len(), len(v.want))
	}
	for _, k := range keys {
		if v.m.Get(k) != v.want[k] {
			t.Fatalf("Get(%s) gave another value", k)
		}
	}
	if got := maps.Collect(v.m.All()); !maps.Equal(got, v.want) {
		t.Fatal("All gave something else")
	}
	if want := slices.SortedFunc(maps.Keys(v.want), Key.Compare); !slices.Equal(v.m.Keys(), want) {
		t.Fatal("Keys gave something else")
	}
}

func checkChanged(t *testing.T, old, now version) {
	t.Helper()
	got := map[Key]Change[int]{}
	for c := range now.m.Changed(old.m) {
		if _, twice := got[c.Key]; twice {
			t.Fatalf("%s came twice", c.Key)
		}
		got[c.Key] = c
	}
	want := map[Key]Change[int]{}
	for k, v := range now.want {
		if old.want[k] != v {
			want[k] = Change[int]{k, old.want[k], v}
		}
	}
	for k, v := range old.want {
		if now.want[k] == nil {
			want[k] = Change[int]{k, v, nil}
		}
	}
	if !maps.Equal(got, want) {
		t.Fatalf("Changed gave %d changes, want %d, or other ones", len(got), len(want))
	}
}

func TestMap_stops(t *testing.T) {
	set := map[Key]*int{}
	for i := range 5000 {
		set[Key{Name: fmt.Sprint(i)}] = new(int)
	}
	m := Map[int]{}.With(set)
	for range m.All() {
		break
	}
	for range m.Changed(Map[int]{}) {
		break
	}
	for range (Map[int]{}).Changed(m) {
		break
	}
}

// TestMap_changeIsCheap guards the promise of the type: a change of one key among
// thirty thousand neither copies nor walks them.
func TestMap_changeIsCheap(t *testing.T) {
	set := map[Key]*int{}
	for i := range 30_000 {
		set[Key{"ns", fmt.Sprint("service-", i)}] = new(int)
	}
	m := Map[int]{}.With(set)
	largest := 0
	for _, p := range m.parts {
		largest = max(largest, len(p.m))
	}
	if largest > 70 {
		t.Errorf("a shard of 30,000 keys has %d of them", largest)
	}
	next := m.With(map[Key]*int{{"ns", "service-7"}: new(int)})
	shared := 0
	for s := range shards {
		if next.parts[s] == m.parts[s] {
			shared++
		}
	}
	if shared != shards-1 {
		t.Errorf("%d of %d shards are shared", shared, shards)
	}
}

func BenchmarkMap_changeOneOf30000(b *testing.B) {
	set := map[Key]*int{}
	for i := range 30_000 {
		set[Key{"ns", fmt.Sprint("service-", i)}] = new(int)
	}
	m := Map[int]{}.With(set)
	for b.Loop() {
		next := m.With(map[Key]*int{{"ns", "service-7"}: new(int)})
		for range next.Changed(m) {
		}
		m = next
	}
}

func TestMap_part(t *testing.T) {
	set := map[Key]*int{}
	for i := range 500 {
		set[Key{Name: fmt.Sprint(i)}] = new(int)
	}
	all := Map[int]{}.With(set)
	last := Map[int]{}
	for i := 1; i <= 4; i++ {
		part := all.Part(i, 4)
		n := 0
		for k, v := range part.All() {
			if n++; v != all.Get(k) {
				t.Errorf("%s is another", k)
			}
		}
		if n != part.Len() || n <= last.Len() {
			t.Errorf("part %d has %d, its Len is %d; the one before %d", i, n, part.Len(), last.Len())
		}
		for c := range part.Changed(last) {
			if c.Old != nil || c.New == nil {
				t.Errorf("part %d: %s is not only more", i, c.Key)
			}
		}
		last = part
	}
	if last.Len() != 500 {
		t.Errorf("the last part has %d of 500", last.Len())
	}
	if got := (Map[int]{}).Part(1, 4).Len(); got != 0 {
		t.Errorf("a part of nothing has %d", got)
	}
}
