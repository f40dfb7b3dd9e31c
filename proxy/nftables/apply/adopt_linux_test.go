package apply

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

var update = flag.Bool("update", false, "write the goldens")

// TestAdopt starts again with everything equal, which writes nothing, and with
// differences, which writes these alone.
func TestAdopt(t *testing.T) {
	nettest.New(t)
	r := rand.New(rand.NewPCG(1, 2))
	ap, conn := applier(t)
	tb, pods := &proxy.Table{}, randomPods(r)
	for i := range 30 {
		tb = with(tb, random(r, i))
	}
	apply(t, ap, tb, pods)
	before, err := conn.Generation()
	if err != nil {
		t.Fatal(err)
	}
	again := New(conn, nft.IPv4, nft.IPv6)
	apply(t, again, tb, pods)
	if !again.Changed(nft.Event{Lost: true}) {
		t.Error("lost notices are no reason to look")
	}
	apply(t, again, tb, pods)
	if err := again.Audit(tb, pods); again.Doubtful() || err != nil {
		t.Errorf("audit: drift %v, %v", again.Doubtful(), err)
	}
	if after, err := conn.Generation(); err != nil || after != before {
		t.Errorf("everything equal: generation %d after %d, %v", after, before, err)
	}
	var written []string
	third := New(conn, nft.IPv4)
	third.families[0].commit = func(tx *nft.Tx) error {
		written = append(written, tx.String())
		return conn.Commit(tx)
	}
	tb = with(tb, &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: "new"}, Ports: []proxy.Port{{Protocol: cluster.TCP,
		Frontends: clusterIPs(netip.MustParseAddrPort("10.97.0.1:80")), Endpoints: endpoints([]netip.AddrPort{backend(false, 1)}, nil)}}})
	apply(t, third, tb, pods)
	text := strings.Join(written, "")
	if strings.Count(text, " element ip podlane-2 services") != 1 || strings.Contains(text, "delete") || !strings.Contains(text, `comment "default/new #`) {
		t.Errorf("one Service more wrote\n%s", text)
	}
}

// TestAudit finds without a Monitor what others changed.
func TestAudit(t *testing.T) {
	for _, command := range []string{
		"flush map ip podlane-2 services",
		"delete table ip6 podlane-2",
		"delete element ip podlane-2 pods { 10.244.1.1 }",
		"flush chain ip podlane-2 nat-postrouting",
		"delete element ip podlane-2 chains { 0 }",
		"flush set ip podlane-2 hairpin",
		"flush set ip podlane-2 cluster-ips",
		"flush map ip podlane-2 sources",
		"flush map ip podlane-2 nodeport-inside",
		"flush chain ip podlane-2 service-cidrs",
		"flush chain ip podlane-2 sticky-*",
		"flush chain ip podlane-2 sources-*",
		"flush chain ip podlane-2 to-*",
	} {
		nettest.New(t)
		ap, conn := applier(t)
		tb, pods := everything(), []netip.Addr{netip.MustParseAddr("10.244.1.1")}
		apply(t, ap, tb, pods)
		want := dump(t, ap, conn)
		command = expand(t, conn, command)
		nettest.Run(t, "nft", command)
		if err := ap.Audit(tb, pods); !ap.Doubtful() || err != nil {
			t.Errorf("%s: drift %v, %v", command, ap.Doubtful(), err)
		}
		apply(t, ap, tb, pods)
		if got := strings.ReplaceAll(dump(t, ap, conn), "podlane-2-b", "podlane-2"); got != want {
			t.Errorf("%s: put right:\n%s\nat first:\n%s", command, got, want)
		}
	}
}

// expand puts the name of a chain in place of the star.
func expand(t *testing.T, conn *nft.Conn, command string) string {
	t.Helper()
	prefix, star := strings.CutSuffix(command, "*")
	if !star {
		return command
	}
	words := strings.Fields(prefix)
	chains, err := conn.Chains(nft.Table{Family: nft.IPv4, Name: nftables.Names[0]})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range chains {
		if strings.HasPrefix(c.Name, words[len(words)-1]) {
			return strings.TrimSuffix(prefix, words[len(words)-1]) + c.Name
		}
	}
	t.Fatalf("%s: no such chain", command)
	return ""
}

// TestForeign changes the table as others might; the change is noticed and put
// right without a moment in which nothing is in force.
func TestForeign(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	tb := &proxy.Table{}
	for i := range 8 {
		tb = with(tb, random(r, i))
	}
	for _, command := range []string{
		"flush ruleset",
		"delete table ip podlane-2",
		"flush map ip podlane-2 endpoints",
		"flush chain ip6 podlane-2 nat-prerouting",
		"insert rule ip podlane-2 nat-output accept",
		"add element ip podlane-2 pods { 1.2.3.4 }",
	} {
		t.Run(command, func(t *testing.T) {
			nettest.New(t)
			ap, conn := applier(t)
			apply(t, ap, tb, nil)
			want := dump(t, ap, conn)
			m, err := nft.NewMonitor(0, conn.PortID())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			events, ended := make(chan nft.Event, 1000), make(chan struct{})
			go func() { defer close(ended); _ = m.Run(ctx, func(e nft.Event) { events <- e }) }()
			start := time.Now()
			nettest.Run(t, "nft", command)
			for changed := false; !changed; {
				select {
				case e := <-events:
					changed = ap.Changed(e)
				case <-time.After(time.Second):
					t.Fatal("not noticed within a second")
				}
			}
			apply(t, ap, tb, nil)
			if took := time.Since(start); took > time.Second {
				t.Errorf("put right after %v", took)
			}
			cancel()
			<-ended
			for len(events) > 0 {
				ap.Changed(<-events)
			}
			apply(t, ap, tb, nil)
			if got := strings.ReplaceAll(dump(t, ap, conn), "podlane-2-b", "podlane-2"); got != want {
				t.Errorf("put right:\n%s\nat first:\n%s", got, want)
			}
		})
	}
}

// TestKilled ends an agent after each of its transactions of a load in turn. What
// is in force then is whole: the old state or the new. The next agent gets it
// right.
func TestKilled(t *testing.T) {
	big := func(name string, n int, to int) *proxy.Entry {
		e := &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: name}}
		p := proxy.Port{Protocol: cluster.TCP, Frontends: clusterIPs(netip.MustParseAddrPort("10.96.0.1:80"))}
		for i := range n {
			p.Endpoints[0].Cluster = append(p.Endpoints[0].Cluster, backend(false, i+to))
		}
		e.Ports = []proxy.Port{p}
		return e
	}
	old, now := table(big("web", 3000, 0)), table(big("web", 5000, 1))
	for _, rebuild := range []bool{false, true} {
		for kill := 0; ; kill++ {
			nettest.New(t)
			ap, conn := applier(t)
			apply(t, ap, old, nil)
			left := kill
			f := ap.families[0]
			if rebuild {
				f.applied, f.rebuild = nil, true
			}
			f.commit = func(tx *nft.Tx) error {
				if left == 0 {
					return errors.New("killed")
				}
				left--
				return conn.Commit(tx)
			}
			killed := ap.Apply(now, nil) != nil
			checkWhole(t, conn, fmt.Sprintf("rebuild %v, killed after %d", rebuild, kill))
			next := New(conn, nft.IPv4, nft.IPv6)
			apply(t, next, now, nil)
			checkWhole(t, conn, "after the next start")
			if !killed {
				t.Logf("rebuild %v: %d transactions", rebuild, kill)
				break
			}
		}
	}
}

// TestTooBig changes every endpoint of a Service that one transaction cannot hold:
// the table is built anew beside, where a Service may take several.
func TestTooBig(t *testing.T) {
	nettest.New(t)
	ap, conn := applier(t)
	e := func(port uint16) *proxy.Entry {
		p := proxy.Port{Protocol: cluster.TCP, Frontends: clusterIPs(netip.MustParseAddrPort("10.96.0.1:80"))}
		for i := range 6000 {
			p.Endpoints[0].Cluster = append(p.Endpoints[0].Cluster, netip.AddrPortFrom(backend(false, i).Addr(), port))
		}
		return &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: "big"}, Ports: []proxy.Port{p}}
	}
	ap.families[0].commit = func(tx *nft.Tx) error {
		if tx.Size() > 400<<10 {
			return nft.ErrTooBig
		}
		return conn.Commit(tx)
	}
	apply(t, ap, table(e(1)), nil)
	before := ap.families[0].applied.Ruleset().Table
	apply(t, ap, table(e(2)), nil)
	checkWhole(t, conn, "built anew")
	if after := ap.families[0].applied.Ruleset().Table; after == before {
		t.Errorf("the table is still %s", after)
	}
	if name := ap.families[0].applied.Ruleset().Table.Name; name != nftables.Names[1] {
		t.Errorf("table in force is %s", name)
	}
}

// TestKilled_everything ends an agent after each of its transactions in turn, with
// Services of every kind. What each frontend meets is then what the old or the new
// Table says; the next agent gets it right, and Tidy leaves nothing behind.
func TestKilled_everything(t *testing.T) {
	build := func(seed uint64) *proxy.Table {
		r := rand.New(rand.NewPCG(seed, 9))
		tb := &proxy.Table{NodePorts: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")}}
		for i := range 40 {
			tb = with(tb, random(r, i))
		}
		return tb
	}
	old, now := build(1), build(2)
	oldSaid, nowSaid := sayAll(old), sayAll(now)
	nettest.New(t)
	whole, conn := applier(t)
	apply(t, whole, now, nil)
	want := dump(t, whole, conn)
	for kill := 0; ; kill++ {
		nettest.New(t)
		ap, conn := applier(t)
		apply(t, ap, old, nil)
		left := kill
		for _, f := range ap.families {
			f.commit = func(tx *nft.Tx) error {
				if left == 0 {
					return errors.New("killed")
				}
				left--
				return conn.Commit(tx)
			}
		}
		err := errors.Join(ap.Apply(now, nil), ap.Tidy())
		checkOldOrNew(t, conn, oldSaid, nowSaid)
		next := New(conn, nft.IPv4, nft.IPv6)
		apply(t, next, now, nil)
		if err := next.Tidy(); err != nil {
			t.Fatal(err)
		}
		if got := dump(t, next, conn); got != want {
			t.Fatalf("killed after %d transactions: %s\nwant %s", kill, got, want)
		}
		if err == nil {
			t.Logf("%d transactions", kill)
			return
		}
	}
}

// said is what Lookup says of every frontend of a Table, for clients outside, in
// the words of kernel.meet.
type said map[netip.AddrPort]map[cluster.Protocol]map[proxy.Kind]string

func sayAll(tb *proxy.Table) said {
	all := said{}
	for _, v6 := range []bool{false, true} {
		for n := range 40 {
			for _, kind := range []proxy.Kind{proxy.ClusterIP, proxy.NodePort, proxy.LoadBalancer} {
				at := frontAddr(v6, kind, n)
				all[at] = map[cluster.Protocol]map[proxy.Kind]string{}
				for _, proto := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
					_, text := lookup(tb, proxy.Outside, proto, kind, at)
					all[at][proto] = map[proxy.Kind]string{kind: text}
				}
			}
		}
	}
	return all
}

func checkOldOrNew(t *testing.T, conn *nft.Conn, old, now said) {
	t.Helper()
	kernels := map[bool]*kernel{}
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		kernels[f == nft.IPv6] = readKernel(t, conn, nftables.NewRuleset(f, nftables.Names[0]))
	}
	for at, protos := range old {
		for proto, kinds := range protos {
			for kind, was := range kinds {
				got, is := kernels[at.Addr().Is6()].meet(proxy.Outside, proto, kind, at), now[at][proto][kind]
				if got != was && got != is {
					t.Errorf("%s %s: the kernel has %s, neither %s nor %s", proto, at, got, was, is)
				}
			}
		}
	}
}

// checkWhole checks that in every table in force the number of endpoints that
// services has is that of the slots.
func checkWhole(t *testing.T, conn *nft.Conn, when string) {
	t.Helper()
	tables, err := (&family{conn: conn, family: nft.IPv4}).forced()
	if err != nil || len(tables) == 0 {
		t.Fatalf("%s: %d tables in force, %v", when, len(tables), err)
	}
	for _, table := range tables {
		r := nftables.NewRuleset(nft.IPv4, table.Name)
		services, err1 := conn.Elements(r.Services)
		slots, err2 := conn.Elements(r.Endpoints)
		if errors.Join(err1, err2) != nil || len(services) != 1 || len(slots) != int(services[0].Data[0])|int(services[0].Data[1])<<8 {
			t.Errorf("%s: %s has %d Services, %d slots; %v %v", when, table, len(services), len(slots), err1, err2)
		}
	}
}

// everything is a Table with every feature in both families, compiled for node n1
// from Services as the API has them.
func everything() *proxy.Table {
	b := cluster.NewBuilder()
	addrs := func(texts ...string) (as []netip.Addr) {
		for _, s := range texts {
			as = append(as, netip.MustParseAddr(s))
		}
		return as
	}
	add := func(s cluster.Service, endpoints ...string) {
		s.Namespace = "default"
		b.SetService(&s)
		for i, e := range endpoints {
			node, addr, _ := strings.Cut(e, " ")
			a := netip.MustParseAddr(addr)
			k := cluster.Key{Namespace: "default", Name: fmt.Sprint(s.Name, "-", i)}
			b.SetSlice(&cluster.EndpointSlice{Key: k, Service: s.Name, IPv6: a.Is6(), Ports: []cluster.EndpointPort{{Name: s.Ports[0].Name, Protocol: s.Ports[0].Protocol, Port: 8080}},
				Endpoints: []cluster.Endpoint{{Address: a, Node: node, Ready: true, Serving: true}}})
		}
	}
	port := func(name string, p cluster.Protocol, n, nodePort uint16) []cluster.ServicePort {
		return []cluster.ServicePort{{Name: name, Protocol: p, Port: n, NodePort: nodePort}}
	}
	three := []string{"n1 10.244.1.2", "n2 10.244.2.2", "n2 10.244.2.3", "n1 fd00:244:1::2", "n2 fd00:244:2::2", "n2 fd00:244:2::3"}
	key := func(name string) cluster.Key { return cluster.Key{Name: name} }
	add(cluster.Service{Key: key("plain"), ClusterIPs: addrs("10.96.0.10", "fd96::10"), Ports: port("http", cluster.TCP, 80, 0)}, three...)
	add(cluster.Service{Key: key("counted"), ClusterIPs: addrs("10.96.0.11", "fd96::11"), Ports: port("", cluster.UDP, 53, 0), CountEndpoints: true}, three[0], three[3])
	add(cluster.Service{Key: key("none"), ClusterIPs: addrs("10.96.0.12", "fd96::12"), Ports: port("", cluster.SCTP, 9, 0)})
	add(cluster.Service{Key: key("away"), InternalLocal: true, ClusterIPs: addrs("10.96.0.13", "fd96::13"), Ports: port("", cluster.TCP, 80, 0)}, three[1:3]...)
	add(cluster.Service{Key: key("outside"), Type: cluster.LoadBalancer, ClusterIPs: addrs("10.96.0.14", "fd96::14"), Ports: port("http", cluster.TCP, 80, 30080),
		ExternalIPs: addrs("203.0.113.1", "2001:db8:1::1"), LoadBalancerIPs: addrs("203.0.113.2", "2001:db8:1::2"),
		SourceRanges: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.0.0/17"), netip.MustParsePrefix("2001:db8:100::/48")}}, three...)
	add(cluster.Service{Key: key("keeps-source"), Type: cluster.LoadBalancer, ExternalLocal: true, ClusterIPs: addrs("10.96.0.15", "fd96::15"), Ports: port("http", cluster.TCP, 80, 30081),
		LoadBalancerIPs: addrs("203.0.113.3", "2001:db8:1::3")}, three...)
	add(cluster.Service{Key: key("sticky"), Type: cluster.NodePort, ExternalLocal: true, Affinity: 600, CountEndpoints: true, ClusterIPs: addrs("10.96.0.16", "fd96::16"), Ports: port("http", cluster.TCP, 80, 30082)}, three...)
	b.SetNode(&cluster.Node{Key: key("n1"), Addresses: addrs("192.0.2.1", "2001:db8::1")})
	b.SetServiceCIDR(&cluster.ServiceCIDR{Key: key("kubernetes"), CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/108")}})
	return proxy.CompileAll(b.Publish(), proxy.Config{Node: "n1"})
}

// TestGolden is what nft itself prints of a Table with every feature.
func TestGolden(t *testing.T) {
	nettest.New(t)
	ap, _ := applier(t)
	apply(t, ap, everything(), []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:244:1::2")})
	got := sortElements(nettest.Run(t, "nft", "list", "ruleset"))
	path := filepath.Join("testdata", "ruleset.nft")
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
	if v := nettest.Run(t, "nft", "--version"); !strings.Contains(v, "v1.0.6 ") {
		t.Skipf("nft lists the rules, but the golden is of nft 1.0.6 and this is %s", v)
	}
	if got != string(want) {
		t.Errorf("nft list ruleset is not as before (-update writes it):\n%s", got)
	}
}

// sortElements puts the elements of each set in order, one a line: the kernel
// lists them by a hash with a random seed.
func sortElements(text string) string {
	var b strings.Builder
	for len(text) > 0 {
		before, rest, found := strings.Cut(text, "elements = { ")
		b.WriteString(before)
		if !found {
			break
		}
		list, after, _ := strings.Cut(rest, " }")
		es := strings.Split(list, ",")
		for i := range es {
			es[i] = strings.TrimSpace(es[i])
		}
		slices.Sort(es)
		fmt.Fprintf(&b, "elements = { %s }", strings.Join(es, ",\n\t\t\t     "))
		text = after
	}
	return b.String()
}
