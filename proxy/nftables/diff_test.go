package nftables

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

var update = flag.Bool("update", false, "write the goldens")

func addrPorts(texts ...string) []netip.AddrPort {
	var as []netip.AddrPort
	for _, t := range texts {
		as = append(as, netip.MustParseAddrPort(t))
	}
	return as
}

// clusterIPs makes frontends of that kind.
func clusterIPs(as ...netip.AddrPort) []proxy.Frontend {
	var fs []proxy.Frontend
	for _, a := range as {
		fs = append(fs, proxy.Frontend{Addr: a})
	}
	return fs
}

// endpoints makes a port's endpoints of both families, for the policy Cluster.
func endpoints(v4, v6 []netip.AddrPort) [2]proxy.Endpoints {
	return [2]proxy.Endpoints{{Cluster: v4, Any: len(v4) > 0}, {Cluster: v6, Any: len(v6) > 0}}
}

// entry makes a Service of one port from its name, its frontends and its IPv4
// backends.
func entry(name string, frontends, backends []netip.AddrPort) *proxy.Entry {
	return &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: name},
		Ports: []proxy.Port{{Name: "http", Protocol: cluster.TCP, Frontends: clusterIPs(frontends...), Endpoints: endpoints(backends, nil)}}}
}

func table(entries ...*proxy.Entry) *proxy.Table { return changed(&proxy.Table{}, entries...) }

func changed(t *proxy.Table, entries ...*proxy.Entry) *proxy.Table {
	set := map[cluster.Key]*proxy.Entry{}
	for _, e := range entries {
		set[e.Key] = e
		if e.Ports == nil {
			set[e.Key] = nil
		}
	}
	return &proxy.Table{Services: t.Services.With(set)}
}

// collect gives an Emit that keeps the text of all transactions.
func collect(b *strings.Builder) Emit {
	return func(tx *nft.Tx) error {
		if tx.Err() != nil {
			return tx.Err()
		}
		fmt.Fprintf(b, "# transaction\n%s", tx)
		return nil
	}
}

func load(t *testing.T, tb *proxy.Table, pods ...netip.Addr) (*Applied, string) {
	t.Helper()
	var b strings.Builder
	a, err := Load(NewRuleset(nft.IPv4, Names[0]), tb, pods, nil, collect(&b))
	if err != nil {
		t.Fatal(err)
	}
	return a, b.String()
}

func diff(t *testing.T, a *Applied, tb *proxy.Table, pods ...netip.Addr) (*Applied, string) {
	t.Helper()
	var b strings.Builder
	next, err := Diff(a, tb, pods, collect(&b))
	if err != nil {
		t.Fatal(err)
	}
	return next, b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s is not as before (-update writes it):\n%s", name, got)
	}
}

var (
	web3 = entry("web", addrPorts("10.96.0.10:80"), addrPorts("10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080"))
	web2 = entry("web", addrPorts("10.96.0.10:80"), addrPorts("10.244.1.3:8080", "10.244.2.2:8080"))
	none = entry("none", addrPorts("10.96.0.20:443"), nil)
	gone = &proxy.Entry{Key: web3.Key}
	pod  = netip.MustParseAddr("10.244.1.2")
)

// TestDiff_golden is the text of each kind of change: how many elements it costs
// is to be read there.
func TestDiff_golden(t *testing.T) {
	var all strings.Builder
	step := func(name, text string) { fmt.Fprintf(&all, "## %s\n%s\n", name, text) }
	tb := table(web3, none)
	a, text := load(t, tb, pod)
	step("load", text)
	a, text = diff(t, a, tb, pod)
	step("nothing changed", text)
	tb = changed(tb, web2)
	a, text = diff(t, a, tb, pod)
	step("first endpoint gone: the last slot moves into the hole", text)
	tb = changed(tb, entry("web", addrPorts("10.96.0.10:80"), addrPorts("10.244.1.9:8080", "10.244.2.2:8080")))
	a, text = diff(t, a, tb, pod)
	step("one endpoint for another", text)
	tb = changed(tb, entry("web", addrPorts("10.96.0.10:80", "10.96.0.11:80"), addrPorts("10.244.1.9:8080", "10.244.2.2:8080")))
	a, text = diff(t, a, tb, pod)
	step("one frontend more", text)
	tb = changed(tb, gone)
	a, text = diff(t, a, tb)
	step("Service gone, pod gone", text)
	var b strings.Builder
	if _, err := Tidy(a, collect(&b)); err != nil {
		t.Fatal(err)
	}
	step("tidy", b.String())
	golden(t, "diff.nft", all.String())
}

func TestLoad_chainsDoNotGrowWithServices(t *testing.T) {
	counts := []int{0, 1, 2, 5, 9}
	rules := func(services int) string {
		var es []*proxy.Entry
		for i := range services {
			front := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}), 80)
			var bs []netip.AddrPort
			for b := range counts[i%len(counts)] {
				bs = append(bs, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(b)}), uint16(i+1)))
			}
			es = append(es, entry(fmt.Sprint("s", i), []netip.AddrPort{front}, bs))
		}
		_, text := load(t, table(es...))
		var lines []string
		for line := range strings.Lines(text) {
			if strings.Contains(line, " chain ") || strings.HasPrefix(line, "add rule ") {
				lines = append(lines, line)
			}
		}
		return strings.Join(lines, "")
	}
	few, many := rules(10), rules(10000)
	if few != many || strings.Count(few, "create chain") != 6+4+4 {
		t.Errorf("10 Services:\n%s\n10,000 Services:\n%s", few, many)
	}
}

// TestDiff_costIsThatOfTheChange counts the elements and transactions that one
// endpoint among many costs.
func TestDiff_costIsThatOfTheChange(t *testing.T) {
	for _, services := range []int{10, 3000} {
		tb := synthetic(services, 10)
		a, _ := load(t, tb)
		key := cluster.Key{Namespace: "default", Name: "s5"}
		e := *tb.Services.Get(key)
		e.Ports = slices.Clone(e.Ports)
		e.Ports[0].Endpoints[0].Cluster = e.Ports[0].Endpoints[0].Cluster[1:]
		var txs []*nft.Tx
		if _, err := Diff(a, changed(tb, &e), nil, func(tx *nft.Tx) error { txs = append(txs, tx); return nil }); err != nil {
			t.Fatal(err)
		}
		if len(txs) != 1 || strings.Count(txs[0].String(), " . tcp . 80") != 5 {
			t.Errorf("%d Services: %v", services, txs)
		}
	}
}

// synthetic makes Services s0, s1, ... of so many backends, plus one of 9 so that
// lb9 is there.
func synthetic(services, backends int) *proxy.Table {
	var es []*proxy.Entry
	for i := range services + 1 {
		front := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)}), 80)
		n := backends
		if i == services {
			n = max(backends-1, 0)
		}
		bs := make([]netip.AddrPort, 0, n)
		for b := range n {
			bs = append(bs, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 200, byte(b), byte(i)}), uint16(1000+i>>8)))
		}
		es = append(es, entry(fmt.Sprint("s", i), []netip.AddrPort{front}, bs))
	}
	return table(es...)
}

func TestDiff_sameFrontendTwice(t *testing.T) {
	front := addrPorts("10.96.0.10:80")
	b, c := entry("b", front, addrPorts("10.244.1.2:1")), entry("c", front, addrPorts("10.244.1.3:1"))
	tb := table(c)
	a, _ := load(t, tb)
	tb = changed(tb, b)
	a, text := diff(t, a, tb)
	if !strings.Contains(text, `comment "default/b:http`) || len(a.Problems()) != 1 ||
		a.Problems()[0].String() != "Service default/c: spec.ports: 10.96.0.10 . tcp . 80 is already that of Service default/b, which goes on having it" {
		t.Errorf("%s%v", text, a.Problems())
	}
	tb = changed(tb, &proxy.Entry{Key: b.Key})
	a, text = diff(t, a, tb)
	if !strings.Contains(text, `comment "default/c:http`) || len(a.Problems()) != 0 {
		t.Errorf("after b is gone: %s%v", text, a.Problems())
	}
	if _, text = diff(t, a, changed(tb, &proxy.Entry{Key: c.Key})); strings.Contains(text, "create element") {
		t.Errorf("after c is gone: %s", text)
	}
}

func TestDiff_backendsOutOfOrder(t *testing.T) {
	front := addrPorts("10.96.0.10:80")
	_, want := load(t, table(entry("a", front, addrPorts("10.0.0.1:1", "10.0.0.1:2", "10.0.0.2:1"))))
	_, got := load(t, table(entry("a", front, addrPorts("10.0.0.2:1", "10.0.0.1:2", "10.0.0.1:1", "10.0.0.2:1"))))
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPlace(t *testing.T) {
	for _, tc := range []struct{ have, backends, want []string }{
		{nil, []string{"a", "b"}, []string{"a", "b"}},
		{[]string{"c", "a", "b"}, []string{"a", "b", "c"}, []string{"c", "a", "b"}},
		{[]string{"c", "a", "b"}, []string{"a", "b"}, []string{"b", "a"}},
		{[]string{"c", "a", "b"}, []string{"a", "b", "d"}, []string{"d", "a", "b"}},
		{[]string{"a", "b", "c", "d"}, []string{"a"}, []string{"a"}},
		{[]string{"a", "b", "c", "d"}, []string{"d"}, []string{"d"}},
		{[]string{"a", "b"}, []string{"c", "d", "e"}, []string{"c", "d", "e"}},
		{[]string{"a", "b"}, nil, nil},
	} {
		of := func(names []string) []netip.AddrPort {
			var as []netip.AddrPort
			for _, n := range names {
				as = append(as, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, n[0]}), 1))
			}
			return as
		}
		have := of(tc.have)
		if got := place(have, of(tc.backends)); !slices.Equal(got, of(tc.want)) || !slices.Equal(have, of(tc.have)) {
			t.Errorf("place(%v, %v) = %v", tc.have, tc.backends, got)
		}
	}
}

func BenchmarkDiff_oneEndpoint(b *testing.B) {
	tb := synthetic(30000, 10)
	a, err := Load(NewRuleset(nft.IPv4, Names[0]), tb, nil, nil, func(*nft.Tx) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	e := *tb.Services.Get(cluster.Key{Namespace: "default", Name: "s7"})
	ports := [2][]proxy.Port{e.Ports, slices.Clone(e.Ports)}
	ports[1][0].Endpoints[0].Cluster = ports[1][0].Endpoints[0].Cluster[1:]
	b.ResetTimer()
	for i := range b.N {
		next := e
		next.Ports = ports[(i+1)%2]
		tb = changed(tb, &next)
		if a, err = Diff(a, tb, nil, func(*nft.Tx) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}
