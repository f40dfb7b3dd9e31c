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
// After ErrDoubt it is known that it is not right.
func Diff(a *Applied, t *proxy.Table, pods []netip.Addr, emit Emit) (*Applied, error) {
	d := newDiffer(a, t, emit)
	d.claim()
	d.findWants()
	affected := slices.SortedFunc(maps.Keys(d.set), cluster.Key.Compare)
	d.settle(affected)
	d.addChains()
	d.prefixes(t)
	d.pods(pods)
	d.write(affected)
	d.flush()
	d.next.fronts = a.fronts.With(d.set)
	d.next.contested = a.contested.With(d.contested)
	d.goals.finish(d.next, a)
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
	rules     Ruleset
	table     *proxy.Table
	emit      Emit
	tx        *nft.Tx
	err       error
	set       map[cluster.Key]*front // fronts that may change; nil: gone
	contested map[cluster.Key]*front
	offers    map[cluster.Key]offer // of the first of the changed Services
	wants     map[cluster.Key]*want // of the keys of set, where a Service has them
	goals     *goals
}

func newDiffer(a *Applied, t *proxy.Table, emit Emit) *differ {
	d := &differ{old: a, rules: a.rules, table: t, emit: emit, tx: &nft.Tx{},
		set: map[cluster.Key]*front{}, contested: map[cluster.Key]*front{}, offers: map[cluster.Key]offer{}, wants: map[cluster.Key]*want{}}
	d.next = &Applied{rules: a.rules, table: t.Services, uses: maps.Clone(a.uses), chains: maps.Clone(a.chains),
		specials: a.specials, ends: a.ends, last: a.last}
	d.goals = newGoals(a, d.next)
	return d
}

func (d *differ) v6() bool { return d.rules.Table.Family == nft.IPv6 }

// claim notes which Services want which fronts, for all fronts of all changed
// Services; these fronts are then the keys of set.
func (d *differ) claim() {
	for c := range d.table.Services.Changed(d.old.table) {
		d.eachFront(c.Old, func(k cluster.Key, _ *proxy.Port, _ proxy.Frontend) {
			f := d.front(k)
			f.claims = slices.DeleteFunc(f.claims, func(o cluster.Key) bool { return o == c.Key })
		})
		d.eachFront(c.New, func(k cluster.Key, p *proxy.Port, front proxy.Frontend) {
			f := d.front(k)
			i, found := slices.BinarySearchFunc(f.claims, c.Key, cluster.Key.Compare)
			if found {
				return // of another port of the Service, which has it
			}
			f.claims = slices.Insert(f.claims, i, c.Key)
			if i == 0 {
				d.offers[k] = offer{c.Key, p, front}
			}
		})
	}
	if d.old.adopted == nil {
		return
	}
	for k := range d.old.fronts.All() {
		d.front(k)
	}
}

// eachFront gives every front of an entry, and its cluster IPs.
func (d *differ) eachFront(e *proxy.Entry, f func(cluster.Key, *proxy.Port, proxy.Frontend)) {
	if e == nil {
		return
	}
	for i := range e.Ports {
		p := &e.Ports[i]
		for _, front := range p.Frontends {
			if front.Addr.Addr().Is6() != d.v6() {
				continue
			}
			f(frontKey(p.Protocol, front), p, front)
			if front.Kind == proxy.ClusterIP {
				f(addrKey(front.Addr.Addr()), p, front)
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

// offer is what a Service has for a front.
type offer struct {
	service cluster.Key
	port    *proxy.Port
	front   proxy.Frontend
}

// findWants finds what the fronts should be: what the first Service that claims
// one wants it to be, and of that the first port.
func (d *differ) findWants() {
	for k, f := range d.set {
		if len(f.claims) == 0 {
			continue
		}
		o, ok := d.offers[k]
		if !ok || o.service != f.claims[0] {
			o = d.find(k, f.claims[0])
		}
		w := &want{}
		if !isClusterIP(k) {
			*w = wantOf(o.service, o.port, o.front)
		}
		d.wants[k] = w
	}
}

// find looks for what a Service that has not changed has for a front.
func (d *differ) find(k, service cluster.Key) (o offer) {
	d.eachFront(d.table.Services.Get(service), func(of cluster.Key, p *proxy.Port, front proxy.Frontend) {
		if of == k && o.port == nil {
			o = offer{service, p, front}
		}
	})
	return o
}

// settle counts the goals of each affected front, as they were and as they will
// be.
func (d *differ) settle(affected []cluster.Key) {
	for _, k := range affected {
		f := d.set[k]
		if len(f.claims) > 1 && !isClusterIP(k) {
			d.contested[k] = f
		} else if d.old.contested.Get(k) != nil {
			d.contested[k] = nil
		}
		if isClusterIP(k) {
			continue
		}
		if f.there {
			for _, r := range f.refs() {
				d.goals.release(r)
			}
		}
		if w := d.wants[k]; w != nil {
			for _, g := range w.goals() {
				d.err = cmp.Or(d.err, d.goals.take(g))
			}
		}
	}
}

// addChains makes the chains that fronts are about to use, in transactions of
// their own: the kernel fixes the generation of the rules when a packet enters a
// base chain, but that of elements at each look-up, so a packet on its way could
// find the number and a chain that is still empty for it.
func (d *differ) addChains() {
	if d.old.adopted != nil {
		for _, name := range d.old.adopted.orphans {
			d.tx.DeleteChain(d.rules.chain(name))
		}
	}
	for _, n := range slices.Sorted(maps.Keys(d.next.uses)) {
		if !d.next.chains[n] {
			d.next.chains[n] = true
			d.rules.numberChain(n).create(d.tx)
			d.tx.CreateElements(d.rules.chainsOf(n), d.rules.element(n, n.chain()))
			d.cut()
		}
	}
	d.goals.create(d.tx, d.rules, func() *nft.Tx { d.cut(); return d.tx })
	d.flush()
}

// prefixes brings the chains of prefixes to those of the family.
func (d *differ) prefixes(t *proxy.Table) {
	of := func(ps []netip.Prefix) []netip.Prefix {
		return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return p.Addr().Is6() != d.v6() })
	}
	d.next.nodePorts, d.next.cidrs = of(t.NodePorts), of(t.ServiceCIDRs)
	if !slices.Equal(d.next.nodePorts, d.old.nodePorts) {
		d.tx.FlushChain(d.rules.chain(nodePorts))
		d.rules.nodePortsChain(d.next.nodePorts).fill(d.tx)
	}
	if !slices.Equal(d.next.cidrs, d.old.cidrs) {
		d.tx.FlushChain(d.rules.chain(serviceCIDRs))
		d.rules.serviceCIDRsChain(d.next.cidrs).fill(d.tx)
	}
}

// pods brings the sets of the node's pods to the addresses of the family.
func (d *differ) pods(pods []netip.Addr) {
	now := slices.DeleteFunc(slices.Clone(pods), func(p netip.Addr) bool { return p.Is6() != d.v6() })
	slices.SortFunc(now, netip.Addr.Compare)
	now = slices.Compact(now)
	d.next.pods = now
	r := d.rules
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
