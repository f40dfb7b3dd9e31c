package nftables

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// write brings the affected fronts to what is wanted. A cluster IP is known as
// one after its ports are, and forgotten before: a Service half loaded does not
// refuse.
func (d *differ) write(affected []*job) {
	for _, j := range affected {
		if isClusterIP(j.key) && j.want == nil {
			d.writeClusterIP(j)
		}
	}
	for _, j := range affected {
		if !isClusterIP(j.key) {
			d.writeFront(j)
			if d.tx.Size() >= MaxTx/2 {
				d.flush() // so that the next front, unless it is huge, is whole in one
			}
		}
	}
	for _, j := range affected {
		if isClusterIP(j.key) && j.want != nil {
			d.writeClusterIP(j)
			d.cut()
		}
	}
}

func (d *differ) writeClusterIP(j *job) {
	e := nft.Element{Key: []byte(j.key.Name)}
	switch wanted := j.want != nil; {
	case wanted && !j.front.there:
		d.tx.CreateElements(d.rules.ClusterIPs, e)
		j.front.there = true
	case !wanted:
		if j.front.there {
			d.tx.DeleteElements(d.rules.ClusterIPs, e)
		}
		j.front = nil
	}
}

// writeFront brings one front to what is wanted. Its number is written last,
// since a new front may be cut into several transactions.
func (d *differ) writeFront(j *job) {
	f, w := j.front, j.want
	if w == nil && !f.there {
		j.front = nil
		return
	}
	if w != nil && f.there && w.comment == f.comment {
		d.compare(j.key, f, w)
		return
	}
	var next front
	if w != nil {
		next = front{claims: f.claims, there: true, comment: w.comment, to: d.goals.number(w.to), sources: d.ref(w.sources), inside: d.ref(w.inside)}
		recount := Counted(w.comment) != Counted(f.comment)
		next.slots, next.slotCount = place(f.slots, w.slots), len(w.slots)
		next.local, next.localCount = place(f.local, w.local), len(w.local)
		d.slots(j, slotsOf{f.slots, f.slotCount, next.slots, 0, recount})
		d.slots(j, slotsOf{f.local, f.localCount, next.local, LocalSlot, recount})
	} else {
		d.slots(j, slotsOf{f.slots, f.slotCount, nil, 0, false})
		d.slots(j, slotsOf{f.local, f.localCount, nil, LocalSlot, false})
	}
	d.numbers(j.key, f, &next)
	j.front = nil
	if w != nil {
		j.front = &next
	}
}

// compare looks whether a front that says that it is as wanted leads where it
// should: others may have changed what Adopt found.
func (d *differ) compare(k cluster.Key, f *front, w *want) {
	same := func(a, b *ref) bool { return a == b || a != nil && b != nil && *a == *b }
	in := d.ref(w.inside)
	if f.to != d.goals.number(w.to) || !same(f.sources, d.ref(w.sources)) || !same(plainly(f.inside), plainly(in)) {
		numbers, _, _ := d.rules.objects(k)
		d.err = cmp.Or(d.err, fmt.Errorf("%w: %s { %s }", ErrDoubt, numbers, numbers.ElementText(nft.Element{Key: []byte(k.Name)}, true)))
	}
	f.inside = in // of a special chain Adopt does not know it
}

func (d *differ) ref(g *goal) *ref {
	if g == nil {
		return nil
	}
	r := d.goals.number(*g)
	return &r
}

// numbers writes the numbers of a front that has changed, that of the services
// map always: its comment tells of the endpoints.
func (d *differ) numbers(k cluster.Key, f, next *front) {
	to, in, _ := d.rules.objects(k)
	d.number(k, in, plainly(f.inside), plainly(next.inside))
	d.number(k, d.rules.Sources, f.sources, next.sources)
	if f.there {
		d.tx.DeleteElements(to, nft.Element{Key: []byte(k.Name)})
	}
	if next.there {
		d.tx.CreateElements(to, nft.Element{Key: []byte(k.Name), Data: next.to.number.mark(), Comment: next.comment})
	}
}

// plainly leaves out a special chain inside: that of the front goes there itself.
func plainly(r *ref) *ref {
	if r != nil && r.name != "" {
		return nil
	}
	return r
}

func (d *differ) number(k cluster.Key, s nft.Set, old, next *ref) {
	if old != nil && next != nil && *old == *next {
		return
	}
	if old != nil {
		d.tx.DeleteElements(s, nft.Element{Key: []byte(k.Name)})
	}
	if next != nil {
		e := nft.Element{Key: []byte(k.Name), Data: next.number.mark()}
		if s.Verdicts {
			e.Data, e.Verdict = nil, nft.Verdict{Code: nft.Jump, Chain: next.name}
		}
		d.tx.CreateElements(s, e)
	}
}

// slotsOf is one run of slots of a front: what it has (of so many, where they are
// not known), and what it should have.
type slotsOf struct {
	have   []netip.AddrPort
	count  int
	next   []netip.AddrPort
	offset uint32
	all    bool // write even what is the same
}

// slots writes the elements of the slots that differ: first all that go, so that
// they share a message, then all that come.
func (d *differ) slots(j *job, s slotsOf) {
	k := j.key
	known := len(s.have) == s.count && !s.all
	same := func(i int) bool { return known && i < s.count && i < len(s.next) && s.have[i] == s.next[i] }
	_, _, endpoints := d.rules.objects(k)
	key := func(i int) []byte { return nft.Concat(k.Name).Mark(s.offset + uint32(i)) }
	for i := range s.count {
		if !same(i) {
			d.tx.DeleteElements(endpoints, nft.Element{Key: key(i)})
		}
	}
	var counter *nft.Counter
	if j.want != nil && j.want.count {
		counter = &nft.Counter{}
	}
	// One piece of memory for all: a cold load makes hundreds of thousands of these.
	buf := make(nft.Concat, 0, len(s.next)*(len(k.Name)+4+16+4))
	piece := func(of nft.Concat) []byte {
		b := of[len(buf):len(of):len(of)]
		buf = of
		return b
	}
	for i, b := range s.next {
		if same(i) {
			continue
		}
		e := nft.Element{Counter: counter}
		e.Key = piece(append(buf, k.Name...).Mark(s.offset + uint32(i)))
		e.Data = piece(buf.Addr(b.Addr()).Port(b.Port()))
		d.tx.CreateElements(endpoints, e)
		if !j.front.there {
			d.cut()
		}
	}
}

// place gives each backend a slot: one that has a slot keeps it, a new one takes
// that of one that is gone or a new slot at the end, and a hole that is left is
// filled by the last. have and backends are not changed; backends are sorted.
func place(have, backends []netip.AddrPort) []netip.AddrPort {
	in := func(sorted []netip.AddrPort, b netip.AddrPort) bool {
		_, found := slices.BinarySearchFunc(sorted, b, compareAddrPort)
		return found
	}
	if len(have) == 0 {
		return backends
	}
	before := slices.SortedFunc(slices.Values(have), compareAddrPort)
	added := slices.DeleteFunc(slices.Clone(backends), func(b netip.AddrPort) bool { return in(before, b) })
	next := slices.Clone(have)
	for i := 0; i < len(next); i++ {
		for i < len(next) && !in(backends, next[i]) {
			if len(added) > 0 {
				next[i], added = added[0], added[1:]
				break
			}
			next[i] = next[len(next)-1]
			next = next[:len(next)-1]
		}
	}
	return append(next, added...)
}
