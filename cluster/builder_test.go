package cluster

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
)

// update is one call of a Builder.
type update struct {
	object string // what it is about: updates of one object keep their order
	apply  func(*Builder)
}

// histories gives, for each of some objects, a random history of it. The values
// are made anew at each call, so that equal objects have different pointers.
func histories(r *rand.Rand) [][]update {
	var all [][]update
	for o := range 40 {
		var one []update
		for range 1 + r.IntN(6) {
			one = append(one, randomUpdate(r, o))
		}
		all = append(all, one)
	}
	return all
}

func randomUpdate(r *rand.Rand, o int) update {
	k := Key{fmt.Sprint("ns", o%3), fmt.Sprint("o", o)}
	x, gone := r.IntN(4), r.IntN(3) == 0
	u := update{object: k.String()}
	switch o % 8 {
	case 0:
		u.apply = func(b *Builder) { b.SetNode(&Node{Key: Key{Name: k.Name}, Zone: fmt.Sprint(x)}) }
		if gone {
			u.apply = func(b *Builder) { b.DeleteNode(k.Name) }
		}
	case 1:
		u.apply = func(b *Builder) { b.SetNamespace(&Namespace{Key{Name: k.Name}}) }
		if gone {
			u.apply = func(b *Builder) { b.DeleteNamespace(k.Name) }
		}
	case 2:
		u.apply = func(b *Builder) { b.SetPod(&Pod{Key: k, IPs: []netip.Addr{addr(x)}}) }
		if gone {
			u.apply = func(b *Builder) { b.DeletePod(k) }
		}
	case 3:
		u.apply = func(b *Builder) { b.SetService(&Service{Key: k, ClusterIPs: []netip.Addr{addr(x)}}) }
		if gone {
			u.apply = func(b *Builder) { b.DeleteService(k) }
		}
	default: // a slice, which also goes from one Service to another
		svc, ready := fmt.Sprint("s", r.IntN(3)), r.IntN(2) == 0
		u.apply = func(b *Builder) {
			b.SetSlice(&EndpointSlice{Key: k, Service: svc, Endpoints: []Endpoint{{Address: addr(x), Ready: ready}}})
		}
		if gone {
			u.apply = func(b *Builder) { b.DeleteSlice(k) }
		}
	}
	return u
}

func addr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}) }

// TestBuilder_anyOrder plays the same histories in different orders, with
// repetitions, published in different portions: the last Snapshot is the same,
// and a Snapshot shares with the one before it whatever is equal.
func TestBuilder_anyOrder(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		all := histories(r)
		want := contents(play(t, r, all, false))
		for range 4 {
			if got := contents(play(t, r, all, true)); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: got\n%v\nwant\n%v", seed, got, want)
			}
		}
	}
}

// play applies all histories, mixed where asked for, and gives the last Snapshot.
func play(t *testing.T, r *rand.Rand, all [][]update, mixed bool) *Snapshot {
	t.Helper()
	b := NewBuilder()
	last := b.Publish()
	at := make([]int, len(all))
	for left := flat(all); left > 0; {
		o := 0
		for at[o] == len(all[o]) {
			o++
		}
		if mixed {
			if o = r.IntN(len(all)); at[o] > 0 && r.IntN(3) == 0 {
				all[o][at[o]-1].apply(b) // repeats the newest of this object
			}
			if at[o] == len(all[o]) {
				continue
			}
		}
		all[o][at[o]].apply(b)
		at[o]++
		left--
		if mixed && r.IntN(5) == 0 {
			last = publish(t, b, last)
		}
	}
	return publish(t, b, last)
}

func flat(all [][]update) (n int) {
	for _, one := range all {
		n += len(one)
	}
	return n
}

func publish(t *testing.T, b *Builder, old *Snapshot) *Snapshot {
	t.Helper()
	before, pending := contents(old), b.Pending()
	now := b.Publish()
	if b.Pending() {
		t.Fatal("something is pending after Publish")
	}
	if !reflect.DeepEqual(contents(old), before) {
		t.Fatal("Publish changed an older Snapshot")
	}
	n := changedAreDifferent(t, old.Nodes, now.Nodes) + changedAreDifferent(t, old.Namespaces, now.Namespaces) +
		changedAreDifferent(t, old.Pods, now.Pods) + changedAreDifferent(t, old.Services, now.Services) +
		changedAreDifferent(t, old.Slices, now.Slices)
	if pending != (n > 0) {
		t.Fatalf("Pending gave %t before %d changes", pending, n)
	}
	changedAreDifferent(t, old.Endpoints, now.Endpoints)
	checkEndpoints(t, now)
	return now
}

// changedAreDifferent counts the changes: an equal object must have its old
// pointer, so it is none.
func changedAreDifferent[V any](t *testing.T, old, now Map[V]) (n int) {
	t.Helper()
	for c := range now.Changed(old) {
		n++
		if reflect.DeepEqual(c.Old, c.New) {
			t.Fatalf("%T %s has a new pointer to an equal value", c.New, c.Key)
		}
	}
	return n
}

// checkEndpoints derives Endpoints from Slices anew.
func checkEndpoints(t *testing.T, s *Snapshot) {
	t.Helper()
	want := map[Key][]*EndpointSlice{}
	for _, k := range s.Slices.Keys() {
		slice := s.Slices.Get(k)
		svc := Key{k.Namespace, slice.Service}
		want[svc] = append(want[svc], slice)
	}
	got := map[Key][]*EndpointSlice{}
	for k, e := range s.Endpoints.All() {
		got[k] = e.Slices
	}
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Fatalf("Endpoints are %v, want %v", got, want)
	}
}

// contents gives everything in a Snapshot as plain maps.
func contents(s *Snapshot) []any {
	return []any{maps.Collect(s.Nodes.All()), maps.Collect(s.Namespaces.All()), maps.Collect(s.Pods.All()),
		maps.Collect(s.Services.All()), maps.Collect(s.Slices.All()), maps.Collect(s.Endpoints.All())}
}

func TestBuilder_thereAndBack(t *testing.T) {
	b := NewBuilder()
	k := Key{"ns", "s1"}
	b.SetSlice(&EndpointSlice{Key: k, Service: "web"})
	b.SetService(&Service{Key: Key{"ns", "web"}})
	first := b.Publish()
	b.SetSlice(&EndpointSlice{Key: k, Service: "other"})
	b.DeleteSlice(k)
	b.SetSlice(&EndpointSlice{Key: k, Service: "web"})
	b.DeleteService(Key{"ns", "web"})
	b.SetService(&Service{Key: Key{"ns", "web"}})
	b.SetPod(&Pod{Key: k})
	b.DeletePod(k)
	if b.Pending() {
		t.Error("something is pending after all was taken back")
	}
	if next := b.Publish(); *next != *first {
		t.Error("the Snapshot does not share everything with the one before")
	}
}

func TestSnapshot_problems(t *testing.T) {
	b := NewBuilder()
	p := func(kind string) []Problem { return []Problem{{Kind: kind, Key: Key{"ns", "x"}, Field: "f", Err: "e"}} }
	b.SetNode(&Node{Problems: p("Node")})
	b.SetPod(&Pod{Problems: p("Pod")})
	b.SetService(&Service{Problems: p("Service")})
	b.SetSlice(&EndpointSlice{Problems: p("EndpointSlice")})
	var got []string
	for _, p := range b.Publish().Problems() {
		got = append(got, p.String())
	}
	slices.Sort(got)
	if want := []string{"EndpointSlice ns/x: f: e", "Node ns/x: f: e", "Pod ns/x: f: e", "Service ns/x: f: e"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if got := (Problem{Kind: "Node", Key: Key{Name: "n"}, Err: "e"}).String(); got != "Node n: e" {
		t.Errorf("got %q", got)
	}
}
