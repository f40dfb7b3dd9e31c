package apply

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

func backend(v6 bool, i int) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)})
	if v6 {
		a = netip.AddrFrom16([16]byte{0xfd, 0x44, 14: byte(i >> 8), 15: byte(i)})
	}
	return netip.AddrPortFrom(a, 8080)
}

// random makes a Service of both families with random ports, frontends and
// backends.
func random(r *rand.Rand, i int) *proxy.Entry {
	e := &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: fmt.Sprint("s", i)}}
	for p := range r.IntN(3) {
		port := proxy.Port{Name: fmt.Sprint("p", p), Protocol: []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP}[p]}
		for range 1 + r.IntN(2) {
			n := byte(i)
			if r.IntN(10) == 0 {
				n = byte(r.IntN(8)) // perhaps another Service's
			}
			port.Frontends = append(port.Frontends, clusterIPs(
				netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, 0, n}), 80),
				netip.AddrPortFrom(netip.AddrFrom16([16]byte{0xfd, 0x96, 15: n}), 80))...)
		}
		for b := range 12 {
			if r.IntN(3) == 0 {
				port.Endpoints[0].Cluster = append(port.Endpoints[0].Cluster, backend(false, b))
			}
			if r.IntN(3) == 0 {
				port.Endpoints[1].Cluster = append(port.Endpoints[1].Cluster, backend(true, b))
			}
		}
		slices.SortFunc(port.Frontends, func(a, b proxy.Frontend) int { return a.Addr.Compare(b.Addr) })
		port.Frontends = slices.CompactFunc(port.Frontends, func(a, b proxy.Frontend) bool { return a.Addr == b.Addr })
		e.Ports = append(e.Ports, port)
	}
	return e
}

func randomPods(r *rand.Rand) []netip.Addr {
	var pods []netip.Addr
	for b := range 6 {
		if r.IntN(2) == 0 {
			pods = append(pods, backend(false, b).Addr(), backend(true, b).Addr())
		}
	}
	return pods
}

// dump gives what the kernel has of the table in force of each family: chains and
// rules as nft prints them, elements sorted, and the endpoints of each frontend as
// a set, since their order is history.
func dump(t testing.TB, ap *Applier, conn *nft.Conn) string {
	t.Helper()
	var b strings.Builder
	for _, f := range ap.families {
		r := f.applied.Ruleset()
		for _, s := range []nft.Set{r.Services, r.Counts, r.Endpoints, r.Pods, r.Hairpin} {
			es, err := conn.Elements(s)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString(sortedElements(s, es))
		}
		rules, err := conn.Rules(r.Table)
		if err != nil {
			t.Fatal(err)
		}
		slices.SortStableFunc(rules, func(a, b nft.RuleInfo) int { return strings.Compare(a.Chain, b.Chain) })
		for _, rule := range rules {
			fmt.Fprintln(&b, f.family, rule)
		}
	}
	return b.String()
}

func sortedElements(s nft.Set, es []nft.Element) string {
	var lines []string
	slots := map[string][]byte{}
	for _, e := range es {
		e.Counter = nil
		if s.Name == "endpoints" { // key without slot, and bit i of slots for slot i
			front, slot := string(e.Key[:len(e.Key)-4]), e.Key[len(e.Key)-4]
			slots[front] = append(slots[front], slot)
			e.Key = append(slices.Clone(e.Key[:len(e.Key)-4]), 0, 0, 0, 0)
		}
		lines = append(lines, fmt.Sprintln(s, s.ElementText(e, false)))
	}
	for front, has := range slots {
		slices.Sort(has)
		lines = append(lines, fmt.Sprintf("slots of %x: %v\n", front, has))
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// TestHistory applies random histories, with an error of the kernel in one commit
// of ten, and compares what the kernel has then with what a whole load of the last
// Table makes in another namespace.
func TestHistory(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			nettest.New(t)
			ap, conn := applier(t)
			for _, f := range ap.families {
				f.commit = faulty(r, conn)
			}
			tb, pods := &proxy.Table{}, randomPods(r)
			for range 60 {
				for range 1 + r.IntN(3) {
					tb = with(tb, random(r, r.IntN(8)))
				}
				if r.IntN(4) == 0 {
					pods = randomPods(r)
				}
				if r.IntN(10) == 0 { // the agent starts again
					ap = New(conn, nft.IPv4, nft.IPv6)
					for _, f := range ap.families {
						f.commit = faulty(r, conn)
					}
				}
				_ = ap.Apply(tb, pods)
				if r.IntN(5) == 0 {
					_ = ap.Tidy()
				}
			}
			settle(t, func() error { return ap.Apply(tb, pods) })
			settle(t, func() error { return errors.Join(ap.Apply(tb, pods), ap.Tidy()) })
			history := dump(t, ap, conn)
			checkLookup(t, ap, conn, tb)
			nettest.New(t)
			whole, conn2 := applier(t)
			apply(t, whole, tb, pods)
			if want := dump(t, whole, conn2); history != want {
				t.Errorf("after the history:\n%s\nloaded whole:\n%s", history, want)
			}
			if fmt.Sprint(ap.Problems()) != fmt.Sprint(whole.Problems()) {
				t.Errorf("problems %v, loaded whole %v", ap.Problems(), whole.Problems())
			}
		})
	}
}

// checkLookup compares what the kernel has for every frontend that may be there
// with the reference, proxy.Table.Lookup.
func checkLookup(t *testing.T, ap *Applier, conn *nft.Conn, tb *proxy.Table) {
	t.Helper()
	found := 0
	for n := range byte(8) {
		for _, proto := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
			for i, addr := range []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, n}), netip.AddrFrom16([16]byte{0xfd, 0x96, 15: n})} {
				at := netip.AddrPortFrom(addr, 80)
				want := tb.Lookup(proxy.Query{Client: proxy.Outside, Protocol: proto, Destination: at})
				owner, backends := inKernel(t, conn, ap.families[i].applied.Ruleset(), proto, at)
				wantOwner := ""
				if want.Frontend.Addr.IsValid() {
					found++
					wantOwner = want.Service.String() + ":" + want.Port
				}
				if owner != wantOwner || !slices.Equal(backends, want.Backends) {
					t.Errorf("%s %s: kernel has %q %v, Lookup gives %+v", proto, at, owner, backends, want)
				}
			}
		}
	}
	if found == 0 {
		t.Log("no frontend in the last Table")
	}
}

// inKernel reads the owner and the endpoints, sorted, of one frontend; "" where
// there is none.
func inKernel(t *testing.T, conn *nft.Conn, r nftables.Ruleset, proto cluster.Protocol, at netip.AddrPort) (owner string, backends []netip.AddrPort) {
	t.Helper()
	key := nft.Concat(nil).Addr(at.Addr()).Proto(uint8(proto)).Port(at.Port())
	e, err := conn.GetElement(r.Services, key)
	if errors.Is(err, nft.ErrNotFound) {
		return "", nil
	}
	if err != nil {
		t.Fatal(err)
	}
	for slot := range uint32(e.Data[0]) {
		b, err := conn.GetElement(r.Endpoints, slices.Concat(key, nft.Concat(nil).Mark(slot)))
		if err != nil {
			t.Fatal(err)
		}
		n := len(b.Data) - 4
		addr, _ := netip.AddrFromSlice(b.Data[:n])
		backends = append(backends, netip.AddrPortFrom(addr, uint16(b.Data[n])<<8|uint16(b.Data[n+1])))
	}
	slices.SortFunc(backends, netip.AddrPort.Compare)
	owner, _, _ = strings.Cut(e.Comment, " ")
	return owner, backends
}

// faulty fails one commit of ten, of these half after it was done.
func faulty(r *rand.Rand, conn *nft.Conn) nftables.Emit {
	return func(tx *nft.Tx) error {
		switch r.IntN(20) {
		case 0:
			return errors.New("injected: not done")
		case 1:
			return errors.Join(conn.Commit(tx), errors.New("injected: done nevertheless"))
		}
		return conn.Commit(tx)
	}
}

func settle(t *testing.T, f func() error) {
	t.Helper()
	for range 200 {
		if f() == nil {
			return
		}
	}
	t.Fatal("does not converge")
}
