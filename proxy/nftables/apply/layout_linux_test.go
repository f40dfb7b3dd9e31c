package apply

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/podlane/podlane/kernel/nft"
)

// layout1 is a table of an agent of layout 1, with one Service: its rules are as
// they were there.
type layout1 struct {
	table                            nft.Table
	services, counts, slots, pods    nft.Set
	vip                              netip.AddrPort
	backends                         []netip.AddrPort
	local                            []netip.Addr
	daddr, saddr, proto, dport, prio nft.Field
}

func (l *layout1) build() *nft.Tx {
	f := nft.FamilyOf(l.vip.Addr().Is6())
	l.table = nft.Table{Family: f, Name: nft.Prefix + "1"}
	front := []nft.Type{nft.AddrType(f), nft.InetProto, nft.InetService}
	l.services = nft.Set{Table: l.table, Name: "services", Key: front, Data: []nft.Type{nft.Mark}, Counter: true}
	l.counts = nft.Set{Table: l.table, Name: "counts", Key: []nft.Type{nft.Mark}, Verdicts: true}
	l.slots = nft.Set{Table: l.table, Name: "endpoints", Key: append(slices.Clone(front), nft.Mark), Data: []nft.Type{nft.AddrType(f), nft.InetService}}
	l.pods = nft.Set{Table: l.table, Name: "pods", Key: []nft.Type{nft.AddrType(f)}}
	l.daddr, l.saddr, l.proto, l.dport, l.prio = nft.Daddr(f), nft.Saddr(f), nft.L4Proto(), nft.Dport(), nft.Priority()
	tx := &nft.Tx{}
	tx.AddTable(l.table)
	for _, s := range []nft.Set{l.services, l.counts, l.slots, l.pods} {
		tx.AddSet(s)
	}
	lb := nft.Chain{Table: l.table, Name: "lb"}
	tx.CreateChain(lb)
	tx.AddRule(lb, nft.NewRule(nft.PriorityNone()))
	tx.AddRule(lb, nft.NewRule(nft.NotIn(l.pods, l.saddr), nft.MarkSet(0x2000)))
	tx.AddRule(lb, nft.NewRule(nft.DNATMap(f, l.slots, l.daddr, l.proto, l.dport, nft.RandomMod(len(l.backends), 0))))
	n := nft.Concat(nil).Mark(uint32(len(l.backends)))
	key := func() nft.Concat { return nft.Concat(nil).Addr(l.vip.Addr()).Proto(6).Port(l.vip.Port()) }
	tx.CreateElements(l.counts, nft.Element{Key: n, Verdict: nft.Verdict{Code: nft.GoTo, Chain: "lb"}})
	for i, b := range l.backends {
		tx.CreateElements(l.slots, nft.Element{Key: key().Mark(uint32(i)), Data: nft.Concat(nil).Addr(b.Addr()).Port(b.Port())})
	}
	for _, p := range l.local {
		tx.CreateElements(l.pods, nft.Element{Key: nft.Concat(nil).Addr(p)})
	}
	tx.CreateElements(l.services, nft.Element{Key: key(), Data: n, Comment: "default/web #000000000000"})
	return tx
}

// inForce adds the base chains.
func (l *layout1) inForce() *nft.Tx {
	tx := &nft.Tx{}
	for name, hook := range map[string]nft.Hook{"nat-prerouting": nft.Prerouting, "nat-output": nft.Output} {
		c := nft.Chain{Table: l.table, Name: name, Hook: hook, Type: "nat", Priority: nft.DstNAT}
		tx.CreateChain(c)
		tx.AddRule(c, nft.NewRule(nft.PriorityMap(l.services, l.daddr, l.proto, l.dport), nft.Vmap(l.counts, l.prio)))
	}
	c := nft.Chain{Table: l.table, Name: "nat-postrouting", Hook: nft.Postrouting, Type: "nat", Priority: nft.SrcNAT}
	tx.CreateChain(c)
	tx.AddRule(c, nft.NewRule(nft.MarkHas(0x2000), nft.StatusDNAT(), nft.MarkClear(0x2000), nft.Masquerade()))
	return tx
}

// TestLayout takes over from an agent of layout 1 and gives back to one, again and
// again, while connections are made from a pod and from outside: none may fail.
func TestLayout(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		_, conn := applier(t)
		vip := w.vip(1, 80)
		backends := []netip.AddrPort{w.server(w.a, 8080), w.server(w.r, 8080)}
		old := &layout1{vip: vip, backends: backends, local: w.pods()}
		commit := func(tx *nft.Tx) {
			t.Helper()
			if err := conn.Commit(tx); err != nil {
				t.Fatal(err)
			}
		}
		commit(old.build())
		commit(old.inForce())
		var stop atomic.Bool
		asked := make(chan int)
		for _, from := range []place{w.b, w.outside} {
			go func() {
				lockInto(from.ns)
				n := 0
				for ; !stop.Load(); n++ {
					if _, _, err := askHere("tcp", vip); err != nil {
						t.Errorf("connection %d from %s: %v", n, from.name, err)
						break
					}
				}
				asked <- n
			}()
		}
		tb := table(w.service("web", vip, backends...))
		swaps := 0
		for end := time.Now().Add(3 * time.Second); time.Now().Before(end); swaps++ {
			ap := New(conn, nft.IPv4, nft.IPv6)
			apply(t, ap, tb, w.pods())
			if tables, err := conn.Tables(); err != nil || slices.Contains(tables, old.table) {
				t.Fatalf("tables %v, %v", tables, err)
			}
			commit(old.build())
			commit(old.inForce())
			for _, f := range ap.families {
				tx := &nft.Tx{}
				tx.AfterPackets()
				tx.DeleteTable(f.applied.Ruleset().Table)
				commit(tx)
			}
		}
		stop.Store(true)
		n := <-asked + <-asked
		t.Logf("%d swaps each way, %d connections", swaps, n)
		if n < 100 || swaps < 20 {
			t.Errorf("too few to mean anything")
		}
	})
}
