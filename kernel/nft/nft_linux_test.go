package nft

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var (
	testTable = Table{IPv4, "podlane-test"}
	frontends = Set{Table: testTable, Name: "frontends", Key: []Type{IPv4Addr, InetProto, InetService}, Data: []Type{Mark}, Counter: true}
	slots     = Set{Table: testTable, Name: "slots", Key: []Type{IPv4Addr, InetProto, InetService, Mark}, Data: []Type{IPv4Addr, InetService}}
	verdicts  = Set{Table: testTable, Name: "verdicts", Key: []Type{Mark}, Verdicts: true}
)

func dial(t testing.TB) *Conn {
	t.Helper()
	nettest.New(t)
	c, err := Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func commit(t testing.TB, c *Conn, tx *Tx) {
	t.Helper()
	if err := c.Commit(tx); err != nil {
		t.Fatalf("commit: %v\n%.2000s", err, tx)
	}
}

func addTestTable(t testing.TB, c *Conn) {
	t.Helper()
	tx := &Tx{}
	tx.AddTable(testTable)
	tx.CreateChain(Chain{Table: testTable, Name: "there"})
	for _, s := range []Set{frontends, slots, verdicts} {
		tx.AddSet(s)
	}
	commit(t, c, tx)
}

func frontend(i int) Concat {
	return Concat(nil).Addr(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})).Proto(6).Port(80)
}

// TestCommit_manyElements writes element counts across the borders of a message,
// with the longest comments there are, and reads all back: an element list over
// 64 KiB would overflow a 16-bit length and lose elements without an error.
func TestCommit_manyElements(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	comment := func(i int) string { return fmt.Sprintf("%0*d", MaxComment, i) }
	counts := []int{1, 2, 100, 139, 140, 141, 142, 143, 144, 145, 150, 170, 200, 333, 400, 1000, 1234, 2000, 3333, 5000}
	for _, n := range counts {
		tx := &Tx{}
		tx.FlushSet(frontends)
		for i := range n {
			tx.CreateElements(frontends, Element{Key: frontend(i), Data: Concat(nil).Mark(uint32(i)), Comment: comment(i)})
		}
		if tx.Size() > c.MaxSize() {
			t.Logf("stopped before %d elements: %d bytes, and the buffer without root takes %d", n, tx.Size(), c.MaxSize())
			break
		}
		if b := tx.encode(1, nil); len(b.buf) > tx.Size() {
			t.Errorf("%d elements: Size %d, but %d bytes", n, tx.Size(), len(b.buf))
		}
		commit(t, c, tx)
		es, err := c.Elements(frontends)
		if err != nil {
			t.Fatal(err)
		}
		if len(es) != n {
			t.Fatalf("wrote %d elements, read %d", n, len(es))
		}
		for _, e := range es {
			i := int(e.Key[1])<<16 | int(e.Key[2])<<8 | int(e.Key[3])
			if e.Comment != comment(i) || string(e.Data) != string(Concat(nil).Mark(uint32(i))) || e.Counter == nil {
				t.Fatalf("element %d came back as %+v", i, e)
			}
		}
	}
}

func TestCommit_countsToFiveThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	c := dial(t)
	addTestTable(t, c)
	// One element more each time: a loss at any count would show as a difference
	// that stays.
	for n := 1; n <= 5000; n += 1 + n/50 {
		tx := &Tx{}
		tx.FlushSet(slots)
		for i := range n {
			tx.CreateElements(slots, Element{Key: frontend(i).Mark(uint32(i)), Data: Concat(nil).Addr(netip.AddrFrom4([4]byte{1, 2, 3, 4})).Port(uint16(i))})
		}
		if tx.Size() > c.MaxSize() {
			t.Skipf("%d elements need %d bytes, the buffer without root takes %d", n, tx.Size(), c.MaxSize())
		}
		commit(t, c, tx)
		es, err := c.Elements(slots)
		if err != nil || len(es) != n {
			t.Fatalf("wrote %d elements, read %d: %v", n, len(es), err)
		}
	}
}

func TestGetElement(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	tx := &Tx{}
	want := Element{Key: frontend(7), Data: Concat(nil).Mark(3), Comment: "default/web:http #012345678901", Counter: &Counter{Packets: 5, Bytes: 300}}
	tx.CreateElements(frontends, want)
	tx.CreateElements(verdicts, Element{Key: Concat(nil).Mark(1), Verdict: Verdict{GoTo, "there"}}, Element{Key: Concat(nil).Mark(2), Verdict: Verdict{Code: Drop}})
	commit(t, c, tx)
	got, err := c.GetElement(frontends, frontend(7))
	if err != nil {
		t.Fatal(err)
	}
	if frontends.ElementText(got, false) != frontends.ElementText(want, false) {
		t.Errorf("got %s", frontends.ElementText(got, false))
	}
	if v, err := c.GetElement(verdicts, Concat(nil).Mark(1)); err != nil || v.Verdict != (Verdict{GoTo, "there"}) {
		t.Errorf("verdict %v, %v", v.Verdict, err)
	}
	if v, err := c.GetElement(verdicts, Concat(nil).Mark(2)); err != nil || v.Verdict.Code != Drop {
		t.Errorf("verdict %v, %v", v.Verdict, err)
	}
	// An element may count though its map does not.
	tx = &Tx{}
	counted := Element{Key: frontend(7).Mark(0), Data: Concat(nil).Addr(netip.AddrFrom4([4]byte{1, 2, 3, 4})).Port(5), Counter: &Counter{}}
	tx.CreateElements(slots, counted, Element{Key: frontend(7).Mark(1), Data: counted.Data})
	commit(t, c, tx)
	for i, want := range []bool{true, false} {
		if e, err := c.GetElement(slots, frontend(7).Mark(uint32(i))); err != nil || (e.Counter != nil) != want {
			t.Errorf("slot %d: %+v, %v", i, e, err)
		}
	}
	_, err = c.GetElement(frontends, frontend(8))
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "frontends { 10.0.0.8 . tcp . 80 }") {
		t.Errorf("missing element: %v", err)
	}
	if _, err := c.Elements(Set{Table: testTable, Name: "nosuch"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing set: %v", err)
	}
}

func TestCommit_errorNamesTheObject(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	for _, tc := range []struct {
		name, want string
		errno      error
		build      func(tx *Tx)
	}{
		{"chain of no table", "create chain ip podlane-none x", unix.ENOENT,
			func(tx *Tx) { tx.CreateChain(Chain{Table: Table{IPv4, "podlane-none"}, Name: "x"}) }},
		{"chain twice", "create chain ip podlane-test there", unix.EEXIST,
			func(tx *Tx) { tx.CreateChain(Chain{Table: testTable, Name: "there"}) }},
		{"goto nowhere", "add rule ip podlane-test there goto nowhere", unix.ENOENT,
			func(tx *Tx) { tx.AddRule(Chain{Table: testTable, Name: "there"}, NewRule(Do(GoTo, "nowhere"))) }},
		{"one element of many", "(10.0.4.210 . tcp . 80)", unix.EEXIST, func(tx *Tx) {
			tx.CreateElements(frontends, Element{Key: frontend(1234), Data: Concat(nil).Mark(0)})
			for i := range 2000 {
				tx.CreateElements(frontends, Element{Key: frontend(i), Data: Concat(nil).Mark(1)})
			}
		}},
		{"missing element", "delete 2 elements of ip podlane-test slots", unix.ENOENT, func(tx *Tx) {
			tx.DeleteElements(slots, Element{Key: frontend(1).Mark(0)}, Element{Key: frontend(2).Mark(0)})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tx := &Tx{}
			tx.AddTable(testTable)
			tc.build(tx)
			err := c.Commit(tx)
			if !errors.Is(err, tc.errno) || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("got %v", err)
			}
			if es, err := c.Elements(frontends); err != nil || len(es) != 0 {
				t.Errorf("%d elements left behind, %v", len(es), err)
			}
		})
	}
}

func TestCommit_mistakesAreKept(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	tx := &Tx{}
	tx.CreateElements(slots, Element{Key: frontend(1)})
	tx.CreateElements(frontends, Element{Key: frontend(1), Data: Concat(nil).Mark(1)})
	if err := c.Commit(tx); err == nil || !strings.Contains(err.Error(), "key of 12 bytes, want 16") {
		t.Errorf("short key: %v", err)
	}
	tx = &Tx{}
	tx.CreateElements(frontends, Element{Key: frontend(1), Data: Concat(nil).Mark(1), Comment: strings.Repeat("x", MaxComment+1)})
	if err := c.Commit(tx); err == nil || !strings.Contains(err.Error(), "comment of 252 bytes") {
		t.Errorf("long comment: %v", err)
	}
}

func TestCommit_tooBig(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	c.max = 10000
	tx := &Tx{}
	for i := range 1000 {
		tx.CreateElements(frontends, Element{Key: frontend(i), Data: Concat(nil).Mark(1)})
	}
	if err := c.Commit(tx); !errors.Is(err, ErrTooBig) {
		t.Errorf("got %v", err)
	}
	if es, err := c.Elements(frontends); err != nil || len(es) != 0 {
		t.Errorf("%d elements, %v", len(es), err)
	}
}

func TestTables(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	tx := &Tx{}
	tx.AddTable(Table{IPv6, "podlane-test"})
	tx.AddTable(Table{IPv4, "someone-else"})
	before, err := c.Generation()
	if err != nil {
		t.Fatal(err)
	}
	commit(t, c, tx)
	if after, err := c.Generation(); err != nil || after != before+1 {
		t.Errorf("generation %d after %d, %v", after, before, err)
	}
	ts, err := c.Tables()
	if err != nil || fmt.Sprint(ts) != "[ip podlane-test ip6 podlane-test]" {
		t.Errorf("tables %v, %v", ts, err)
	}
	chains, err := c.Chains(testTable)
	if err != nil || fmt.Sprint(chains) != "[ip podlane-test there]" {
		t.Errorf("chains %v, %v", chains, err)
	}
}

// TestMonitor checks that changes by others come, and ours do not.
func TestMonitor(t *testing.T) {
	c := dial(t)
	m, err := NewMonitor(0, c.PortID())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	events := make(chan Event, 100)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx, func(e Event) { events <- e }) }()
	addTestTable(t, c)
	nettest.Run(t, "nft", "add table ip others")
	nettest.Run(t, "nft", "add element ip podlane-test slots { 10.0.0.1 . tcp . 80 . 0 : 1.2.3.4 . 5 }")
	wait := func(what string, want func(Event) bool) {
		t.Helper()
		select {
		case e := <-events:
			if !want(e) {
				t.Errorf("%s: got %+v", what, e)
			}
		case <-time.After(time.Second):
			t.Fatalf("%s: no event within a second", what)
		}
	}
	wait("element added", func(e Event) bool { return e.Table == testTable && !e.Gone && e.Port != c.PortID() })
	nettest.Run(t, "nft", "flush ruleset")
	gone := false
	for !gone {
		wait("flush ruleset", func(e Event) bool { gone = e.Gone; return e.Table == testTable })
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Run gave %v", err)
	}
}

// TestMonitor_away checks that a change by others while the monitor does not listen
// is told by the generation, and that it listens again afterwards.
func TestMonitor_away(t *testing.T) {
	c := dial(t)
	m, err := NewMonitor(0, c.PortID())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	events := make(chan Event, 100)
	go func() { _ = m.Run(t.Context(), func(e Event) { events <- e }) }()
	addTestTable(t, c)
	n := 0
	own := func() error {
		n++
		tx := &Tx{}
		tx.AddTable(Table{IPv4, fmt.Sprint(Prefix, "away-", n)})
		return c.Commit(tx)
	}
	if missed, err := m.Away(c, own); missed || err != nil {
		t.Errorf("own changes alone: missed %v, %v", missed, err)
	}
	if missed, err := m.Away(c, func() error { nettest.Run(t, "nft", "add table ip podlane-x"); return own() }); !missed || err != nil {
		t.Errorf("others' changes too: missed %v, %v", missed, err)
	}
	failed := errors.New("failed")
	if missed, err := m.Away(c, func() error { return failed }); missed || !errors.Is(err, failed) {
		t.Errorf("missed %v, %v; want the error", missed, err)
	}
	select {
	case e := <-events:
		t.Errorf("an event of a time away: %+v", e)
	default:
	}
	nettest.Run(t, "nft", "delete table ip podlane-x")
	select {
	case e := <-events:
		if e.Table.Name != "podlane-x" || !e.Gone {
			t.Errorf("got %+v, want the end of podlane-x", e)
		}
	case <-time.After(time.Second):
		t.Error("no event after a time away")
	}
}

// TestString_nftTakesIt feeds the text form to nft, and compares what nft lists
// with what the netlink form made.
func TestString_nftTakesIt(t *testing.T) {
	c := dial(t)
	tx := &Tx{}
	for _, f := range []Family{IPv4, IPv6} {
		table := Table{f, "podlane-test"}
		pods := Set{Table: table, Name: "pods", Key: []Type{AddrType(f)}}
		twice := Set{Table: table, Name: "twice", Key: []Type{AddrType(f), AddrType(f)}}
		jumps := Set{Table: table, Name: "jumps", Key: []Type{AddrType(f), InetProto, InetService}, Verdicts: true, Counter: true}
		other, base := Chain{Table: table, Name: "other"}, Chain{table, "base", Prerouting, "nat", DstNAT}
		post := Chain{table, "post", Postrouting, "nat", SrcNAT}
		addr := netip.MustParseAddr(map[Family]string{IPv4: "10.1.2.3", IPv6: "fd00::1:2"}[f])
		tx.AddTable(table)
		for _, s := range []Set{pods, twice, jumps} {
			tx.AddSet(s)
		}
		tx.CreateChain(other)
		tx.AddRule(other, NewRule(NotIn(pods, Saddr(f)), MarkSet(0x2000)))
		tx.AddRule(other, NewRule(L4Is(6, "tcp"), RejectReset()))
		tx.AddRule(other, NewRule(Reject(f)))
		tx.CreateChain(base)
		tx.AddRule(base, NewRule(Vmap(jumps, Daddr(f), L4Proto(), Dport())))
		tx.AddRule(base, NewRule(In(pods, Daddr(f)), Do(Return, "")))
		tx.CreateChain(post)
		tx.AddRule(post, NewRule(In(twice, Saddr(f), Daddr(f)), StatusDNAT(), Masquerade()))
		tx.AddRule(post, Rule{Comment: "a comment", Parts: []Part{MarkHas(0x2000), MarkClear(0x2000), Masquerade()}})
		tx.AddElements(pods, Element{Key: Concat(nil).Addr(addr)})
		tx.AddElements(twice, Element{Key: Concat(nil).Addr(addr).Addr(addr), Comment: "x"})
		tx.CreateElements(jumps, Element{Key: Concat(nil).Addr(addr).Proto(17).Port(53), Comment: "default/dns", Counter: &Counter{1, 2}, Verdict: Verdict{GoTo, "other"}})
	}
	commit(t, c, tx)
	ours := nettest.Run(t, "nft", "list", "ruleset")
	nettest.New(t)
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(tx.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft -f: %v\n%s\n%s", err, out, tx)
	}
	if theirs := nettest.Run(t, "nft", "list", "ruleset"); theirs != ours {
		t.Errorf("over netlink:\n%s\nby nft:\n%s", ours, theirs)
	}
}

func TestFlushChain(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	there := Chain{Table: testTable, Name: "there"}
	tx := &Tx{}
	tx.AddRule(there, Rule{Parts: []Part{Do(Return, "")}, Comment: "one"})
	tx.AddRule(there, Rule{Parts: []Part{L4Is(6, "tcp"), Do(Drop, "")}, Comment: "two"})
	commit(t, c, tx)
	rules, err := c.Rules(testTable)
	if err != nil || fmt.Sprint(rules) != "[{there one [immediate] {0 0}} {there two [meta cmp immediate] {0 0}}]" {
		t.Errorf("rules %v, %v", rules, err)
	}
	tx = &Tx{}
	tx.FlushChain(there)
	commit(t, c, tx)
	if rules, err := c.Rules(testTable); err != nil || len(rules) != 0 {
		t.Errorf("after the flush: %v, %v", rules, err)
	}
	tx = &Tx{}
	tx.DeleteChain(there)
	commit(t, c, tx)
	if chains, err := c.Chains(testTable); err != nil || len(chains) != 0 {
		t.Errorf("after delete: %v, %v", chains, err)
	}
}

// FuzzReceive gives any bytes to all that reads what the kernel sends.
func FuzzReceive(f *testing.F) {
	b := &batch{}
	b.message(0, 0, msgNewSetElem, 0, IPv4, func(a attrs) attrs {
		a, at := frontends.encodeName(a).begin(elemListElements)
		e := Element{Key: frontend(1), Data: Concat(nil).Mark(1), Comment: "x", Counter: &Counter{1, 2}}
		return e.encode(a, &frontends, false).end(at)
	})
	f.Add(b.buf)
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) {
		notices(b, func(Event) {})
		messages(b, func(m message) bool {
			m.answer()
			parseChain(m)
			parseRule(m)
			appendElements(nil, m)
			return true
		})
	})
}

// TestCommit_passing: what is in use is tried again, as it may be about to be released, and in the end named.
func TestCommit_passing(t *testing.T) {
	c := dial(t)
	addTestTable(t, c)
	other, err := Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	there := Chain{Table: testTable, Name: "there"}
	use, release, remove := &Tx{}, &Tx{}, &Tx{}
	e := Element{Key: Concat(nil).Mark(1), Verdict: Verdict{GoTo, "there"}}
	use.AddChain(there)
	use.AddElements(verdicts, e)
	release.DeleteElements(verdicts, e)
	remove.DeleteChain(there)
	commit(t, c, use)
	if err := c.Commit(remove); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "delete chain ip podlane-test there") {
		t.Fatalf("a chain in use: %v", err)
	}
	for try := range 5 { // a busy machine may be late
		released := make(chan error, 1)
		time.AfterFunc(2*time.Millisecond, func() { released <- other.Commit(release) })
		err := c.Commit(remove)
		if released := <-released; released != nil {
			t.Fatal(released)
		}
		if err == nil {
			return
		}
		t.Logf("try %d: %v", try+1, err)
		commit(t, c, use)
	}
	t.Error("a chain that is released is not deleted")
}
