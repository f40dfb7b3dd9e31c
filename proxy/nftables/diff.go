package nftables

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

// MaxTx is about how many bytes one transaction has at most, where it may be
// ended: what a socket takes for a user who is not root.
const MaxTx = 256 << 10

// Emit is given transactions in the order in which they must be committed. Each
// leaves every Service whole. Its error ends Diff or Load, which give it back.
type Emit func(*nft.Tx) error

// Diff emits what brings a table from what it has to what it should have: a
// proxy.Table and the addresses of the node's pods, of which those of other
// families are left out. It costs what changed since the Table of a.
//
// Chains for numbers of endpoints that are no longer in use stay until Tidy.
//
// After an error of emit it is not known what the kernel has: read it and Adopt.
func Diff(a *Applied, t *proxy.Table, pods []netip.Addr, emit Emit) (*Applied, error) {
	d := &differ{old: a, table: t, emit: emit, tx: &nft.Tx{},
		set: map[cluster.Key]*front{}, contested: map[cluster.Key]*front{}}
	d.next = &Applied{rules: a.rules, table: t.Services, uses: maps.Clone(a.uses), chains: maps.Clone(a.chains)}
	d.claim()
	affected := slices.SortedFunc(maps.Keys(d.set), cluster.Key.Compare)
	d.settle(affected)
	d.addChains()
	d.pods(pods)
	for _, k := range affected {
		d.write(k)
		d.cut()
	}
	d.flush()
	d.next.fronts = a.fronts.With(d.set)
	d.next.contested = a.contested.With(d.contested)
	return d.next, d.err
}

// Load emits a whole table: first built without base chains, so that it is in
// force only when these are added, in one transaction. One more then deletes the
// tables it replaces. Were that the same transaction, a connection could pass the
// new chains just before it and meet the old ones just after it: one of some 3,000
// connections was lost so under constant swaps, and none of 80,000 with two
// transactions. A table of the same name is deleted first.
func Load(r Ruleset, t *proxy.Table, pods []netip.Addr, replaced []nft.Table, emit Emit) (*Applied, error) {
	first := &nft.Tx{}
	r.skeleton(first)
	if err := emit(first); err != nil {
		return nil, err
	}
	a, err := Diff(fresh(r), t, pods, emit)
	if err != nil {
		return nil, err
	}
	force := &nft.Tx{}
	for _, c := range r.baseChains() {
		c.create(force)
	}
	if err := emit(force); err != nil || len(replaced) == 0 {
		return a, err
	}
	last := &nft.Tx{}
	for _, old := range replaced {
		last.DeleteTable(old)
	}
	return a, emit(last)
}

// differ is one run of Diff.
type differ struct {
	old, next *Applied
	table     *proxy.Table
	emit      Emit
	tx        *nft.Tx
	err       error
	set       map[cluster.Key]*front // fronts that may change; nil: gone
	contested map[cluster.Key]*front
	wants     map[cluster.Key]want // of the keys of set, where a Service has them
}

// want is what a front should be.
type want struct {
	comment  string
	backends []netip.AddrPort
}

func (d *differ) v6() bool { return d.next.rules.Table.Family == nft.IPv6 }

// claim notes which Services want which fronts, for all fronts of all changed
// Services; these fronts are then the keys of set.
func (d *differ) claim() {
	for c := range d.table.Services.Changed(d.old.table) {
		d.eachFront(c.Old, func(k cluster.Key, f *front) {
			f.claims = slices.DeleteFunc(f.claims, func(o cluster.Key) bool { return o == c.Key })
		})
		d.eachFront(c.New, func(k cluster.Key, f *front) {
			if i, found := slices.BinarySearchFunc(f.claims, c.Key, cluster.Key.Compare); !found {
				f.claims = slices.Insert(f.claims, i, c.Key)
			}
		})
	}
	if !d.old.adopted {
		return
	}
	for k := range d.old.fronts.All() {
		d.front(k)
	}
}

// eachFront gives every front of an entry, as a copy that may be changed.
func (d *differ) eachFront(e *proxy.Entry, f func(cluster.Key, *front)) {
	if e == nil {
		return
	}
	for i := range e.Ports {
		for _, front := range e.Ports[i].Frontends {
			if a := front.Addr; front.Kind == proxy.ClusterIP && a.Addr().Is6() == d.v6() {
				k := frontKey(e.Ports[i].Protocol, a)
				f(k, d.front(k))
			}
		}
	}
}

func (d *differ) front(k cluster.Key) *front {
	if f, ok := d.set[k]; ok {
		return f
	}
	next := &front{}
	if old := d.old.fronts.Get(k); old != nil {
		*next = *old
		next.claims = slices.Clone(old.claims)
	}
	d.set[k] = next
	return next
}

// settle finds what each affected front should be, and counts.
func (d *differ) settle(affected []cluster.Key) {
	d.wants = make(map[cluster.Key]want, len(affected))
	for _, k := range affected {
		f := d.set[k]
		if len(f.claims) > 1 {
			d.contested[k] = f
		} else if d.old.contested.Get(k) != nil {
			d.contested[k] = nil
		}
		if f.comment != "" {
			d.use(f.count, -1)
		}
		if len(f.claims) > 0 {
			w := d.wanted(k, f.claims[0])
			d.wants[k] = w
			d.use(len(w.backends), +1)
		}
	}
}

func (d *differ) use(n, by int) {
	d.next.uses[n] += by
	if d.next.uses[n] == 0 {
		delete(d.next.uses, n)
	}
}

// wanted gives the first port of the Service that has the front.
func (d *differ) wanted(k cluster.Key, service cluster.Key) want {
	e := d.table.Services.Get(service)
	for i := range e.Ports {
		p := &e.Ports[i]
		for _, front := range p.Frontends {
			if a := front.Addr; front.Kind == proxy.ClusterIP && a.Addr().Is6() == d.v6() && frontKey(p.Protocol, a) == k {
				b := inOrder(p.Way(front).Backends)
				return want{comment(service, p.Name, b), b}
			}
		}
	}
	return want{comment: comment(service, "", nil)}
}

// inOrder gives backends sorted and without duplicates. A proxy.Table has them so;
// where one had not, the slots would be fewer than the number that is written, and
// connections lost, so it is not taken on trust.
func inOrder(backends []netip.AddrPort) []netip.AddrPort {
	for i := 1; i < len(backends); i++ {
		if compareAddrPort(backends[i-1], backends[i]) >= 0 {
			sorted := slices.SortedFunc(slices.Values(backends), compareAddrPort)
			return slices.Compact(sorted)
		}
	}
	return backends
}

// addChains makes the chains for numbers of endpoints that were not in use, in a
// transaction of its own: the kernel fixes the generation of the rules when a
// packet enters a base chain, but that of elements at each look-up, so a packet
// on its way could find the number and a chain that is still empty for it.
func (d *differ) addChains() {
	for _, n := range d.old.orphans {
		d.tx.DeleteChain(d.next.rules.chain(lb(n)))
	}
	for _, n := range slices.Sorted(maps.Keys(d.next.uses)) {
		if n > 0 && !d.next.chains[n] {
			d.next.chains[n] = true
			d.next.rules.lbChain(n).create(d.tx)
			d.tx.CreateElements(d.next.rules.Counts, d.next.rules.count(n))
		}
	}
	d.flush()
}

// Tidy removes the chains for numbers of endpoints that no Service has. It should
// not come at once after a Diff, but a second later: packets may be on their way
// to such a chain, and kernels before 6.2 release the use of a chain late.
func Tidy(a *Applied, emit Emit) (*Applied, error) {
	d := &differ{emit: emit, tx: &nft.Tx{}}
	next := *a
	next.chains = maps.Clone(a.chains)
	var unused []int
	for n := range a.chains {
		if a.uses[n] == 0 {
			unused = append(unused, n)
			delete(next.chains, n)
		}
	}
	slices.Sort(unused)
	for _, n := range unused {
		d.tx.DeleteElements(a.rules.Counts, a.rules.count(n))
	}
	d.flush()
	for _, n := range unused {
		d.tx.DeleteChain(a.rules.chain(lb(n)))
	}
	d.flush()
	return &next, d.err
}

// pods brings the sets of the node's pods to the addresses of the family.
func (d *differ) pods(pods []netip.Addr) {
	now := slices.DeleteFunc(slices.Clone(pods), func(p netip.Addr) bool { return p.Is6() != d.v6() })
	slices.SortFunc(now, netip.Addr.Compare)
	now = slices.Compact(now)
	d.next.pods = now
	r := d.next.rules
	for _, p := range missing(d.old.pods, now) {
		d.tx.DeleteElements(r.Pods, podElement(p))
		d.tx.DeleteElements(r.Hairpin, hairpinElement(p))
	}
	for _, p := range missing(now, d.old.pods) {
		d.tx.CreateElements(r.Pods, podElement(p))
		d.tx.CreateElements(r.Hairpin, hairpinElement(p))
	}
}

func podElement(p netip.Addr) nft.Element { return nft.Element{Key: nft.Concat(nil).Addr(p)} }

func hairpinElement(p netip.Addr) nft.Element {
	return nft.Element{Key: nft.Concat(nil).Addr(p).Addr(p)}
}

// missing gives those of a, sorted, that are not in b, sorted.
func missing(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(p netip.Addr) bool {
		_, found := slices.BinarySearchFunc(b, p, netip.Addr.Compare)
		return found
	})
}

// cut ends the transaction where it has become big.
func (d *differ) cut() {
	if d.tx.Size() >= MaxTx {
		d.flush()
	}
}

func (d *differ) flush() {
	if d.err == nil && !d.tx.Empty() {
		d.err = d.emit(d.tx)
	}
	d.tx = &nft.Tx{}
}

func compareAddrPort(a, b netip.AddrPort) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Port(), b.Port()))
}
