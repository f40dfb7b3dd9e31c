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
	affected := d.sorted()
	d.settle(affected)
	d.addChains()
	d.prefixes(t)
	d.pods(pods)
	d.write(affected)
	d.flush()
	set := make(map[cluster.Key]*front, len(affected))
	for _, j := range affected {
		set[j.key] = j.front
	}
	d.next.fronts = a.fronts.With(set)
	d.next.contested = a.contested.With(d.contested)
	d.goals.finish(d.next, a)
	return d.next, d.err
}

// Load emits a whole table: first built without base chains, so that it is in
// force only when these are added, in one transaction. One more then deletes the
// tables it replaces, after the packets that were under way: one that had found the
// old base chains alone, and came to them when these had just gone, would go on
// without translation, and so would all its connection. In one transaction that cost
// one of some 3,000 connections under constant swaps; in two without the wait, one of
// tens of thousands. A table of the same name is deleted first.
func Load(r Ruleset, t *proxy.Table, pods []netip.Addr, replaced []nft.Table, emit Emit) (*Applied, error) {
	first := &nft.Tx{}
	r.skeleton(first)
	if err := emit(first); err != nil {
		return nil, err
	}
	a := fresh(r)
	for i, n := 1, steps(t); i <= n; i++ {
		part := *t
		part.Services = t.Services.Part(i, n)
		var err error
		if a, err = Diff(a, &part, pods, emit); err != nil {
			return nil, err
		}
	}
	force := &nft.Tx{}
	for _, c := range r.baseChains() {
		c.create(force)
	}
	if err := emit(force); err != nil || len(replaced) == 0 {
		return a, err
	}
	last := &nft.Tx{}
	last.AfterPackets()
	for _, old := range replaced {
		last.DeleteTable(old)
	}
	return a, emit(last)
}

// steps is in how many steps a table is loaded: of a big one the first transactions
// should be on their way before it is known what the last ones hold.
func steps(t *proxy.Table) int { return min(1+t.Services.Len()/2000, 4) }

// differ is one run of Diff.
type differ struct {
	old, next *Applied
	rules     Ruleset
	table     *proxy.Table
	emit      Emit
	tx        *nft.Tx
	err       error
	jobs      map[cluster.Key]*job
	contested map[cluster.Key]*front
	goals     *goals
}

// job is a front that may change.
type job struct {
	key   cluster.Key
	front *front // in the end what it has become; nil: gone
	offer offer  // of the first of the changed Services
	want  *want  // nil: no Service has it
}

func newDiffer(a *Applied, t *proxy.Table, emit Emit) *differ {
	d := &differ{old: a, rules: a.rules, table: t, emit: emit, tx: &nft.Tx{},
		contested: map[cluster.Key]*front{}}
	expected := 0
	if a.table.Len() == 0 {
		expected = 2 * t.Services.Len()
	}
	d.jobs = make(map[cluster.Key]*job, expected)
	d.next = &Applied{rules: a.rules, table: t.Services, uses: maps.Clone(a.uses), chains: maps.Clone(a.chains),
		specials: a.specials, ends: a.ends, last: a.last}
	d.goals = newGoals(a, d.next)
	return d
}

func (d *differ) v6() bool { return d.rules.Table.Family == nft.IPv6 }

// claim notes which Services want which fronts, for all fronts of all changed
// Services; these fronts are then the jobs.
func (d *differ) claim() {
	for c := range d.table.Services.Changed(d.old.table) {
		d.eachFront(c.Old, func(k cluster.Key, _ *proxy.Port, _ proxy.Frontend) {
			f := d.job(k).front
			f.claims = slices.DeleteFunc(f.claims, func(o cluster.Key) bool { return o == c.Key })
		})
		d.eachFront(c.New, func(k cluster.Key, p *proxy.Port, front proxy.Frontend) {
			j := d.job(k)
			f := j.front
			i, found := slices.BinarySearchFunc(f.claims, c.Key, cluster.Key.Compare)
			if found {
				return // of another port of the Service, which has it
			}
			f.claims = slices.Insert(f.claims, i, c.Key)
			if i == 0 {
				j.offer = offer{c.Key, p, front}
			}
		})
	}
	if d.old.adopted == nil {
		return
	}
	for k := range d.old.fronts.All() {
		d.job(k)
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

func (d *differ) job(k cluster.Key) *job {
	if j, ok := d.jobs[k]; ok {
		return j
	}
	next := &front{}
	if old := d.old.fronts.Get(k); old != nil {
		*next = *old
		next.claims = slices.Clone(old.claims)
	}
	j := &job{key: k, front: next}
	d.jobs[k] = j
	return j
}

// sorted gives the jobs by key.
func (d *differ) sorted() []*job {
	jobs := make([]*job, 0, len(d.jobs))
	for _, j := range d.jobs {
		jobs = append(jobs, j)
	}
	slices.SortFunc(jobs, func(a, b *job) int { return a.key.Compare(b.key) })
	return jobs
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
	for k, j := range d.jobs {
		if len(j.front.claims) == 0 {
			continue
		}
		o := j.offer
		if o.port == nil || o.service != j.front.claims[0] {
			o = d.find(k, j.front.claims[0])
		}
		j.want = &want{}
		if !isClusterIP(k) {
			*j.want = wantOf(o.service, o.port, o.front)
		}
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
func (d *differ) settle(affected []*job) {
	for _, j := range affected {
		k, f := j.key, j.front
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
		if j.want != nil {
			for _, g := range j.want.goals() {
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
