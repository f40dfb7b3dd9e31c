package link

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Diff gives the operations that turn have into want, in an order in which each
// finds what it needs: links, sysctls, addresses, neighbours, FDB entries, and
// routes last, so that no packet is sent where nothing is ready; then what is
// not wanted any more, in reverse. The result depends on the two States alone.
//
// It counts on what the kernel does by itself: a link that goes takes all that is
// on it with it, and a link that changes its MAC loses its neighbours.
//
// A veth cannot be made from a State (AddPod makes it), so one that have lacks is
// taken to be there by now, as it is where have is what was applied before the pod
// came; Apply passes over it if it is not.
func Diff(have, want State) Ops {
	d := differ{want: want}
	remade := d.links(have)
	d.have = survivors(have, remade, d.newMAC)
	d.sysctls()
	d.additions()
	d.deletions(have)
	return d.ops
}

// Missing gives the veth links that are wanted and not there, sorted: those of
// pods whose namespace has ended without a word, if have was read. Only adding
// the pod again makes them.
func Missing(have, want State) []string {
	var names []string
	for name, l := range want.Links {
		if h, ok := have.Links[name]; l.Kind == Veth && (!ok || h.Kind != Veth) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

type differ struct {
	have, want State
	ops        Ops
	newMAC     map[string]bool // links whose MAC changes
	dead       map[string]bool // links that are there and not wanted
}

func (d *differ) op(v Verb, o Object) { d.ops = append(d.ops, Op{v, o}) }

// links adds and changes links, and gives the names of those made anew.
func (d *differ) links(have State) map[string]bool {
	remade := map[string]bool{}
	d.newMAC = map[string]bool{}
	for _, name := range sortedKeys(d.want.Links, cmp.Compare[string]) {
		want := d.want.Links[name]
		had, ok := have.Links[name]
		o := LinkObject{Name: name, Link: want}
		switch {
		case !ok:
			d.op(o.made(), o)
		case had.Kind != want.Kind || had.VXLAN != want.VXLAN:
			remade[name] = true
			d.op(Delete, LinkObject{Name: name, Link: had})
			d.op(o.made(), o)
		default:
			o.Have = had
			if o.changesMAC() {
				d.newMAC[name] = true
			}
			if d.newMAC[name] || had.MTU != want.MTU || had.Down || had.SoftChecksum != want.SoftChecksum || had.Shape != want.Shape || had.IngressTo != want.IngressTo {
				d.op(Change, o)
			}
		}
	}
	return remade
}

// made is the verb that brings a link about.
func (l LinkObject) made() Verb {
	if l.Kind == Veth {
		return Change
	}
	return Add
}

// survivors gives what is left of have on the links that were not made anew.
func survivors(have State, remade, newMAC map[string]bool) State {
	if len(remade) == 0 && len(newMAC) == 0 {
		return have
	}
	s := NewState()
	keep(s.Addrs, have.Addrs, func(a Addr, _ struct{}) bool { return !remade[a.Dev] })
	keep(s.Neighs, have.Neighs, func(n NeighKey, _ MAC) bool { return !remade[n.Dev] && !newMAC[n.Dev] })
	keep(s.FDB, have.FDB, func(f FDBKey, _ netip.Addr) bool { return !remade[f.Dev] })
	keep(s.Routes, have.Routes, func(_ RouteKey, r Route) bool { return !remade[r.Dev] })
	keep(s.Sysctls, have.Sysctls, func(path, _ string) bool { return !remade[sysctlDev(path)] })
	return s
}

func keep[K comparable, V any](to, from map[K]V, is func(K, V) bool) {
	for k, v := range from {
		if is(k, v) {
			to[k] = v
		}
	}
}

// sysctls sets forwarding last: turning it on makes the kernel drop what other
// sysctls protect (see Underlay.RARoute).
func (d *differ) sysctls() {
	order := func(a, b string) int {
		return cmp.Or(cmp.Compare(forwards(a), forwards(b)), cmp.Compare(a, b))
	}
	for _, path := range sortedKeys(d.want.Sysctls, order) {
		value := d.want.Sysctls[path]
		if had, ok := d.have.Sysctls[path]; !ok || had != value {
			d.op(Change, SysctlObject{path, value})
		}
	}
}

func forwards(path string) int {
	if strings.HasSuffix(path, "forward") || strings.HasSuffix(path, "forwarding") {
		return 1
	}
	return 0
}

func (d *differ) additions() {
	set(d, d.have.Addrs, d.want.Addrs, compareAddr, func(a Addr, _ struct{}) Object { return a })
	set(d, d.have.Neighs, d.want.Neighs, compareNeigh, neighObject)
	set(d, d.have.FDB, d.want.FDB, compareFDB, fdbObject)
	set(d, d.have.Routes, d.want.Routes, compareRoute, routeObject)
}

// deletions removes what is not wanted, save what goes with its link.
func (d *differ) deletions(have State) {
	d.dead = map[string]bool{}
	for name := range have.Links {
		if _, ok := d.want.Links[name]; !ok {
			d.dead[name] = true
		}
	}
	unset(d, d.have.Routes, d.want.Routes, compareRoute, routeObject)
	unset(d, d.have.FDB, d.want.FDB, compareFDB, fdbObject)
	unset(d, d.have.Neighs, d.want.Neighs, compareNeigh, neighObject)
	unset(d, d.have.Addrs, d.want.Addrs, compareAddr, func(a Addr, _ struct{}) Object { return a })
	for _, name := range sortedKeys(d.dead, cmp.Compare[string]) {
		d.op(Delete, LinkObject{Name: name, Link: have.Links[name]})
	}
}

func set[K, V comparable](d *differ, have, want map[K]V, order func(a, b K) int, object func(K, V) Object) {
	for _, k := range sortedDiff(want, have, order) {
		verb := Add
		if _, ok := have[k]; ok {
			verb = Change
		}
		d.op(verb, object(k, want[k]))
	}
}

func unset[K, V comparable](d *differ, have, want map[K]V, order func(a, b K) int, object func(K, V) Object) {
	var keys []K
	for k := range have {
		if _, ok := want[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, order)
	for _, k := range keys {
		if o := object(k, have[k]); !d.dead[o.dev()] {
			d.op(Delete, o)
		}
	}
}

// sortedDiff gives the keys of a whose value in b is missing or another.
func sortedDiff[K, V comparable](a, b map[K]V, order func(a, b K) int) []K {
	var keys []K
	for k, v := range a {
		if other, ok := b[k]; !ok || other != v {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, order)
	return keys
}

func sortedKeys[K comparable, V any](m map[K]V, order func(a, b K) int) []K {
	return slices.SortedFunc(maps.Keys(m), order)
}

func neighObject(k NeighKey, m MAC) Object    { return NeighObject{k, m} }
func fdbObject(k FDBKey, a netip.Addr) Object { return FDBObject{k, a} }
func routeObject(k RouteKey, r Route) Object  { return RouteObject{k, r} }

func compareAddr(a, b Addr) int {
	return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Prefix.Compare(b.Prefix))
}

func compareNeigh(a, b NeighKey) int {
	return cmp.Or(cmp.Compare(a.Dev, b.Dev), a.Addr.Compare(b.Addr))
}

func compareFDB(a, b FDBKey) int {
	return cmp.Or(cmp.Compare(a.Dev, b.Dev), slices.Compare(a.MAC[:], b.MAC[:]))
}

func compareRoute(a, b RouteKey) int { return a.Dst.Compare(b.Dst) }
