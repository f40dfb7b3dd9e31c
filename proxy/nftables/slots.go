package nftables

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// write brings one front to what is wanted. The number of endpoints is written
// last, since a new front may be cut into several transactions.
func (d *differ) write(k cluster.Key) {
	f := d.set[k]
	w, wanted := d.wants[k]
	had := f.comment != ""
	if !wanted && !had {
		d.set[k] = nil
		return
	}
	if wanted && w.comment == f.comment {
		return
	}
	next := place(f.slots, w.backends)
	d.slots(k, f, next)
	if had {
		d.tx.DeleteElements(d.next.rules.Services, nft.Element{Key: []byte(k.Name)})
	}
	if !wanted {
		d.set[k] = nil
		return
	}
	d.tx.CreateElements(d.next.rules.Services, nft.Element{
		Key: []byte(k.Name), Data: nft.Concat(nil).Mark(uint32(len(next))), Comment: w.comment})
	*f = front{claims: f.claims, comment: w.comment, count: len(next), slots: next}
}

// slots writes the elements of the slots that differ: first all that go, so that
// they share a message, then all that come.
func (d *differ) slots(k cluster.Key, f *front, next []netip.AddrPort) {
	known := len(f.slots) == f.count
	same := func(i int) bool { return known && i < f.count && i < len(next) && f.slots[i] == next[i] }
	endpoints := d.next.rules.Endpoints
	for i := range f.count {
		if !same(i) {
			d.tx.DeleteElements(endpoints, nft.Element{Key: nft.Concat(k.Name).Mark(uint32(i))})
		}
	}
	for i, b := range next {
		if same(i) {
			continue
		}
		d.tx.CreateElements(endpoints, nft.Element{
			Key: nft.Concat(k.Name).Mark(uint32(i)), Data: nft.Concat(nil).Addr(b.Addr()).Port(b.Port())})
		if f.comment == "" {
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
