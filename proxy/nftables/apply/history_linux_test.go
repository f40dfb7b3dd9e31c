package apply

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
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

// random makes a Service of both families with random ports, frontends of every
// kind, policies and backends.
func random(r *rand.Rand, i int) *proxy.Entry {
	e := &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: fmt.Sprint("s", i)}}
	for p := range r.IntN(3) {
		port := proxy.Port{Name: fmt.Sprint("p", p), Protocol: []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP}[p],
			InternalLocal: r.IntN(4) == 0, ExternalLocal: r.IntN(2) == 0, Count: r.IntN(4) == 0}
		if r.IntN(4) == 0 {
			port.Affinity = uint32(1 + r.IntN(2)*100)
		}
		for _, v6 := range []bool{false, true} {
			port.Frontends = append(port.Frontends, randomFrontends(r, v6, i)...)
			port.Endpoints[proxy.Family(v6)] = randomEndpoints(r, v6)
		}
		slices.SortStableFunc(port.Frontends, func(a, b proxy.Frontend) int { return a.Addr.Compare(b.Addr) })
		port.Frontends = slices.CompactFunc(port.Frontends, func(a, b proxy.Frontend) bool { return a.Addr == b.Addr })
		e.Ports = append(e.Ports, port)
	}
	return e
}

// frontAddr is a frontend of a Service: its first cluster IP, another address, ...
func frontAddr(v6 bool, kind proxy.Kind, n int) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{10, 96, byte(kind), byte(n)})
	if v6 {
		a = netip.AddrFrom16([16]byte{0xfd, 0x96, 14: byte(kind), 15: byte(n)})
	}
	if kind == proxy.NodePort {
		a = netip.IPv4Unspecified()
		if v6 {
			a = netip.IPv6Unspecified()
		}
		return netip.AddrPortFrom(a, uint16(30000+n))
	}
	return netip.AddrPortFrom(a, 80)
}

func randomFrontends(r *rand.Rand, v6 bool, i int) []proxy.Frontend {
	n := i
	if r.IntN(10) == 0 {
		n = r.IntN(8) // perhaps another Service's
	}
	fs := []proxy.Frontend{{Kind: proxy.ClusterIP, Addr: frontAddr(v6, proxy.ClusterIP, n)}}
	for _, k := range []proxy.Kind{proxy.ExternalIP, proxy.LoadBalancer, proxy.NodePort} {
		if r.IntN(3) == 0 {
			fs = append(fs, proxy.Frontend{Kind: k, Addr: frontAddr(v6, k, n)})
		}
	}
	for i := range fs {
		if fs[i].Kind == proxy.LoadBalancer && r.IntN(2) == 0 {
			fs[i].Sources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
			if v6 {
				fs[i].Sources = []netip.Prefix{netip.MustParsePrefix("2001:db8:100::/48")}
			}
		}
	}
	return fs
}

func randomEndpoints(r *rand.Rand, v6 bool) proxy.Endpoints {
	var es proxy.Endpoints
	for b := range 12 {
		if r.IntN(3) > 0 {
			continue
		}
		es.Cluster = append(es.Cluster, backend(v6, b))
		if r.IntN(3) == 0 {
			es.Local = append(es.Local, backend(v6, b))
		}
	}
	if r.IntN(8) == 0 {
		es = proxy.Endpoints{}
	}
	es.Any = len(es.Cluster) > 0
	return es
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
// rules, elements sorted, the endpoints of each frontend as a set, since their
// order is history, and the chain of a number in place of a number, since the
// numbers of some are history too.
func dump(t testing.TB, ap *Applier, conn *nft.Conn) string {
	t.Helper()
	var b strings.Builder
	for _, f := range ap.families {
		r := f.applied.Ruleset()
		names := chainNames(t, conn, r)
		for _, s := range r.Sets() {
			b.WriteString(sortedElements(s, elements(t, conn, s), names))
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

func elements(t testing.TB, conn *nft.Conn, s nft.Set) []nft.Element {
	t.Helper()
	es, err := conn.Elements(s)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

// chainNames are the chains, or "drop", by their numbers.
func chainNames(t testing.TB, conn *nft.Conn, r nftables.Ruleset) map[string]string {
	names := map[string]string{}
	for _, s := range []nft.Set{r.Chains, r.InsideChains} {
		for _, e := range elements(t, conn, s) {
			names[string(e.Key)] = strings.TrimPrefix(e.Verdict.String(), "goto ")
		}
	}
	return names
}

func sortedElements(s nft.Set, es []nft.Element, names map[string]string) string {
	var lines []string
	slots := map[string][]uint32{}
	for _, e := range es {
		if e.Counter != nil {
			e.Counter = &nft.Counter{}
		}
		text := s.ElementText(e, false)
		switch s.Name {
		case "endpoints", "nodeport-endpoints": // the key without slot
			front, slot := string(e.Key[:len(e.Key)-4]), binary.NativeEndian.Uint32(e.Key[len(e.Key)-4:])
			slots[front] = append(slots[front], slot)
			e.Key = binary.NativeEndian.AppendUint32([]byte(front), slot&nftables.LocalSlot)
			text = s.ElementText(e, false)
		case "services", "nodeports", "inside", "nodeport-inside":
			text = s.ElementText(e, true) + e.Comment + " " + names[string(e.Data)]
		case "chains", "inside-chains":
			text = e.Verdict.String()
		}
		lines = append(lines, fmt.Sprintln(s, text))
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
			ranges := []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64"), netip.MustParsePrefix("0.0.0.0/0")}
			for range 60 {
				for range 1 + r.IntN(3) {
					tb = with(tb, random(r, r.IntN(8)))
				}
				if r.IntN(4) == 0 {
					pods = randomPods(r)
					n := 1 + r.IntN(3)
					tb = &proxy.Table{Services: tb.Services, NodePorts: ranges[n:], ServiceCIDRs: ranges[:n]}
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
			tb = &proxy.Table{Services: tb.Services, NodePorts: ranges[1:3], ServiceCIDRs: ranges[:1]}
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
// with the reference, proxy.Table.Lookup, for clients on the node and outside.
func checkLookup(t *testing.T, ap *Applier, conn *nft.Conn, tb *proxy.Table) {
	t.Helper()
	found := 0
	for i, f := range ap.families {
		k := readKernel(t, conn, f.applied.Ruleset())
		for n := range 8 {
			for _, proto := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
				for _, kind := range []proxy.Kind{proxy.ClusterIP, proxy.ExternalIP, proxy.LoadBalancer, proxy.NodePort} {
					at := frontAddr(i == 1, kind, n)
					for _, client := range []proxy.Client{proxy.LocalPod, proxy.Outside} {
						found += k.check(tb, client, proto, kind, at)
					}
				}
			}
		}
	}
	if found == 0 {
		t.Log("no frontend in the last Table")
	}
}

// kernel is what the kernel has of a table.
type kernel struct {
	t        *testing.T
	rules    nftables.Ruleset
	elements map[string]map[string]nft.Element // set → key → element
	names    map[string]string
	sticky   map[string][]netip.AddrPort // chain with affinity → endpoints
	inside   map[string]string           // chain with affinity → that for clients on the node
}

func readKernel(t *testing.T, conn *nft.Conn, r nftables.Ruleset) *kernel {
	k := &kernel{t: t, rules: r, elements: map[string]map[string]nft.Element{}, names: chainNames(t, conn, r), sticky: map[string][]netip.AddrPort{}, inside: map[string]string{}}
	for _, s := range r.Sets() {
		k.elements[s.Name] = map[string]nft.Element{}
		for _, e := range elements(t, conn, s) {
			k.elements[s.Name][string(e.Key)] = e
		}
	}
	chain := ""
	for line := range strings.Lines(nettest.Run(t, "nft", "list table "+r.Table.String())) {
		words := strings.Fields(line)
		if len(words) == 3 && words[0] == "chain" {
			chain = words[1]
		}
		if _, to, ok := strings.Cut(line, "fib saddr type local goto sticky-"); ok {
			k.inside[chain] = "sticky-" + strings.TrimSpace(to)
		}
	}
	rules, err := conn.Rules(r.Table)
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range rules {
		if to, err := netip.ParseAddrPort(rule.Comment); err == nil && rule.Exprs[0] == "numgen" {
			k.sticky[rule.Chain] = append(k.sticky[rule.Chain], to)
		}
	}
	return k
}

// check compares one frontend for one client; it gives 1 where there is one.
func (k *kernel) check(tb *proxy.Table, c proxy.Client, proto cluster.Protocol, kind proxy.Kind, at netip.AddrPort) int {
	k.t.Helper()
	want, text := lookup(tb, c, proto, kind, at)
	if got := k.meet(c, proto, kind, at); got != text {
		k.t.Errorf("%s %s, %s: the kernel has %s, Lookup gives %s (%s)", proto, at, c, got, text, want.Reason)
	}
	if _, guarded := k.elements["sources"][string(frontKey(proto, kind, at))]; guarded != (len(want.Frontend.Sources) > 0) {
		k.t.Errorf("%s %s: source ranges in the kernel %v, wanted %v", proto, at, guarded, want.Frontend.Sources)
	}
	if text == "none" {
		return 0
	}
	return 1
}

func frontKey(proto cluster.Protocol, kind proxy.Kind, at netip.AddrPort) nft.Concat {
	key := nft.Concat(nil)
	if kind != proxy.NodePort {
		key = key.Addr(at.Addr())
	}
	return key.Proto(uint8(proto)).Port(at.Port())
}

// lookup is what Lookup says of a client that the source ranges allow, in the
// words of meet.
func lookup(tb *proxy.Table, c proxy.Client, proto cluster.Protocol, kind proxy.Kind, at netip.AddrPort) (proxy.Result, string) {
	q := proxy.Query{Client: c, Protocol: proto, Destination: at, Source: netip.MustParseAddr("198.51.100.1")}
	if at.Addr().Is6() {
		q.Source = netip.MustParseAddr("2001:db8:100::1")
	}
	if kind == proxy.NodePort {
		q.ToNode, q.Destination = true, netip.AddrPortFrom(nodeAddr(at.Addr().Is6()), at.Port())
	}
	r := tb.Lookup(q)
	if !r.Frontend.Addr.IsValid() {
		return r, "none"
	}
	return r, fmt.Sprintf("%s:%s %s %v masquerade %v", r.Service, r.Port, r.Verdict, r.Backends, r.Masquerade)
}

// meet follows the numbers, as the rules would.
func (k *kernel) meet(c proxy.Client, proto cluster.Protocol, kind proxy.Kind, at netip.AddrPort) string {
	key := frontKey(proto, kind, at)
	numbers, in, endpoints := "services", "inside", "endpoints"
	if kind == proxy.NodePort {
		numbers, in, endpoints = "nodeports", "nodeport-inside", "nodeport-endpoints"
	}
	e, ok := k.elements[numbers][string(key)]
	if !ok {
		return "none"
	}
	chain, offset := k.names[string(e.Data)], uint32(0)
	sort := strings.TrimRight(chain, "0123456789")
	stickyInside := k.inside[chain]
	short := strings.HasSuffix(sort, "local") || stickyInside != ""
	isLocal := short
	if isLocal && c == proxy.LocalPod {
		chain, isLocal = cmp.Or(stickyInside, k.names[string(k.elements[in][string(key)].Data)]), false
	} else if isLocal {
		offset = nftables.LocalSlot
	}
	sort = strings.TrimRight(chain, "0123456789")
	owner, _, _ := strings.Cut(e.Comment, " ")
	verdict := proxy.Balance
	var to []netip.AddrPort
	switch {
	case chain == "refuse":
		verdict = proxy.Reject
	case chain == "drop":
		verdict = proxy.Drop
	case strings.HasPrefix(chain, "sticky-"):
		to = k.sticky[chain]
	default:
		count, _ := strconv.Atoi(chain[len(sort):])
		for slot := range uint32(count) {
			to = append(to, addrPort(k.elements[endpoints][string(slices.Concat(key, nft.Concat(nil).Mark(slot+offset)))].Data))
		}
		slices.SortFunc(to, netip.AddrPort.Compare)
	}
	if verdict == proxy.Balance && len(to) == 0 {
		verdict = proxy.Drop
	}
	return fmt.Sprintf("%s %s %v masquerade %v", owner, verdict, to, k.masquerades(c, kind, verdict, chain, isLocal, short))
}

// masquerades: the head of a sticky chain is not read back; its name has a hash of
// it, and packets are sent through such in other tests.
func (k *kernel) masquerades(c proxy.Client, kind proxy.Kind, v proxy.Verdict, chain string, isLocal, short bool) bool {
	switch {
	case v != proxy.Balance || isLocal:
		return false
	case strings.HasPrefix(chain, "sticky-"):
		return kind != proxy.ClusterIP && !short || c != proxy.LocalPod
	}
	return strings.Contains(chain, "external") || c != proxy.LocalPod
}

func addrPort(data []byte) netip.AddrPort {
	if len(data) < 4 {
		return netip.AddrPort{}
	}
	n := len(data) - 4
	addr, _ := netip.AddrFromSlice(data[:n])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(data[n:]))
}

func nodeAddr(v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr("2001:db8::1")
	}
	return netip.MustParseAddr("192.0.2.1")
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
