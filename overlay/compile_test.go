package overlay

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
)

var update = flag.Bool("update", false, "write the golden files")

func node(name, addrs, cidrs string) *cluster.Node {
	n := &cluster.Node{Key: cluster.Key{Name: name}}
	for _, a := range strings.Fields(addrs) {
		n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
	}
	for _, c := range strings.Fields(cidrs) {
		n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(c))
	}
	return n
}

func nodes(ns ...*cluster.Node) cluster.Map[cluster.Node] {
	b := cluster.NewBuilder()
	for _, n := range ns {
		b.SetNode(n)
	}
	return b.Publish().Nodes
}

func underlay(prefixes string) link.Underlay {
	u := link.Underlay{Device: "eth0", MTU: 1500}
	for _, p := range strings.Fields(prefixes) {
		u.Addrs = append(u.Addrs, netip.MustParsePrefix(p))
	}
	return u
}

// three is a dual-stack cluster: n2 is on n1's segment, n3 is not.
func three(mode Mode) Input {
	return Input{
		Config: Config{Mode: mode, Cluster: "test"}, Node: "n1",
		Nodes: nodes(
			node("n1", "192.168.0.1 2001:db8::1", "10.244.1.0/24 fd00:244:1::/64"),
			node("n2", "192.168.0.2 2001:db8::2", "10.244.2.0/24 fd00:244:2::/64"),
			node("n3", "192.168.9.3 2001:db8:9::3", "10.244.3.0/24 fd00:244:3::/64")),
		Underlay: underlay("192.168.0.1/24 2001:db8::1/64"),
		Pods: []Pod{{Link: "pl0a1b2c3d", MAC: link.MAC{2, 0, 0, 0, 0, 5},
			Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:244:1::5")}}},
	}
}

func text(in Input) string {
	s, ps := Compile(in)
	var b strings.Builder
	b.WriteString(s.String())
	for _, p := range ps {
		fmt.Fprintf(&b, "problem %s\n", p)
	}
	return b.String()
}

func TestCompile_golden(t *testing.T) {
	v4only := three(Auto)
	v4only.Nodes = nodes(node("n1", "192.168.0.1", "10.244.1.0/24"), node("n3", "192.168.9.3", "10.244.3.0/24"))
	v6only := three(VXLAN)
	v6only.Nodes = nodes(node("n1", "2001:db8::1", "fd00:244:1::/64"), node("n2", "2001:db8::2", "fd00:244:2::/64"))
	v6only.Pods = []Pod{{Link: "pl1", MAC: link.MAC{2, 0, 0, 0, 0, 5}, Addrs: []netip.Addr{netip.MustParseAddr("fd00:244:1::5")}}}
	mixed := three(Auto) // the direct route's next hop must be of the CIDR's family
	mixed.Nodes = nodes(node("n1", "192.168.0.1 2001:db8::1", "10.244.1.0/24 fd00:244:1::/64"),
		node("n2", "192.168.0.2", "10.244.2.0/24 fd00:244:2::/64"))
	for name, in := range map[string]Input{
		"vxlan": three(VXLAN), "direct": three(Direct), "auto": three(Auto),
		"v4-only": v4only, "v6-only": v6only, "peer-without-v6": mixed,
	} {
		file := filepath.Join("testdata", name+".golden")
		got := text(in)
		if *update {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// TestCompile_problems has one bad node among good ones: it is named with its
// field, and the good ones are as without it.
func TestCompile_problems(t *testing.T) {
	good := []*cluster.Node{
		node("n1", "192.168.0.1", "10.244.1.0/24"), node("n2", "192.168.0.2", "10.244.2.0/24"),
		node("n3", "192.168.9.3", "10.244.3.0/24"),
	}
	for _, c := range []struct {
		mode Mode
		bad  *cluster.Node
		want string
	}{
		{Auto, node("bad", "192.168.0.9", ""), "Node bad: spec.podCIDRs: empty"},
		{Auto, node("bad", "", "10.244.9.0/24"), "Node bad: status.addresses: no InternalIP"},
		{Auto, node("bad", "192.168.0.9", "10.244.2.0/24"), "Node bad: spec.podCIDRs[0]: 10.244.2.0/24 overlaps 10.244.2.0/24 of node n2"},
		{Auto, node("zbad", "192.168.0.9", "10.244.2.128/25"), "Node zbad: spec.podCIDRs[0]: 10.244.2.128/25 overlaps 10.244.2.0/24 of node n2"},
		{Auto, node("zbad", "192.168.0.9", "10.0.0.0/8"), "Node zbad: spec.podCIDRs[0]: 10.0.0.0/8 overlaps"},
		{Auto, node("abad", "192.168.0.9", "10.244.1.128/25"), "Node abad: spec.podCIDRs[0]: 10.244.1.128/25 overlaps 10.244.1.0/24 of node n1"},
		{Auto, node("abad", "192.168.0.9", "192.168.0.0/24"), "Node abad: spec.podCIDRs[0]: 192.168.0.0/24 contains the address 192.168.0."},
		{Auto, node("abad", "192.168.0.9", "192.168.9.0/24"), "Node abad: spec.podCIDRs[0]: 192.168.9.0/24 contains the address 192.168.9.3 of node n3"},
		{Auto, node("bad", "192.168.0.9", "10.244.9.1/32"), "Node bad: spec.podCIDRs[0]: 10.244.9.1/32 has no room"},
		{Auto, node("bad", "192.168.0.1", "10.244.9.0/24"), "Node bad: status.addresses: 192.168.0.1 is node n1's too"},
		{Auto, node("zbad", "192.168.0.2", "10.244.9.0/24"), "Node zbad: status.addresses: 192.168.0.2 is node n2's too"},
		{VXLAN, node("bad", "2001:db8::9", "10.244.9.0/24"), "Node bad: status.addresses: no IPv4 InternalIP, and this node's VXLAN runs over IPv4"},
		{Direct, node("bad", "192.168.9.9", "10.244.9.0/24"), "Node bad: status.addresses: 192.168.9.9 is not on the link of eth0"},
		{Direct, node("bad", "2001:db8::9", "10.244.9.0/24"), "Node bad: status.addresses: no IPv4 InternalIP, and the direct route to 10.244.9.0/24 needs one"},
	} {
		in := three(c.mode)
		in.Pods = nil
		in.Nodes = nodes(good...)
		want, before := Compile(in)
		in.Nodes = nodes(append([]*cluster.Node{c.bad}, good...)...)
		// Where names decide and the bad one's comes first, the good one loses.
		got, ps := Compile(in)
		var new []string
		for _, p := range ps {
			if !slices.Contains(before, p) {
				new = append(new, p.String())
			}
		}
		if c.bad.Name == "bad" && strings.Contains(c.want, "overlaps") {
			if len(new) != 1 || !strings.HasPrefix(new[0], "Node n2: spec.podCIDRs[0]: 10.244.2.0/24 overlaps 10.244.2.0/24 of node bad") {
				t.Errorf("the first by name must win: %v", new)
			}
			continue
		}
		if len(new) != 1 || !strings.HasPrefix(new[0], c.want) {
			t.Errorf("want %q, got %q", c.want, new)
		}
		if d := cmp.Diff(want.String(), got.String()); d != "" {
			t.Errorf("%s: others suffer:\n%s", c.want, d)
		}
	}
}

// TestCompile_older: a node that joins with what an older one has takes nothing from
// it, whatever its name; one that is about to go keeps nothing from its successor.
func TestCompile_older(t *testing.T) {
	aged := func(n *cluster.Node, created int64, leaving bool) *cluster.Node {
		n.Created, n.Leaving = created, leaving
		return n
	}
	in := three(Auto)
	own := node("n1", "192.168.0.1", "10.244.1.0/24")
	for _, test := range []struct {
		name     string
		a, b     *cluster.Node // of one address and pod CIDR
		problems string
	}{
		{"older", aged(node("a", "192.168.0.2", "10.244.2.0/24"), 2, false), aged(node("b", "192.168.0.2", "10.244.2.0/24"), 1, false), "a"},
		{"same age", aged(node("a", "192.168.0.2", "10.244.2.0/24"), 1, false), aged(node("b", "192.168.0.2", "10.244.2.0/24"), 1, false), "b"},
		{"leaving", aged(node("a", "192.168.0.2", "10.244.2.0/24"), 1, true), aged(node("b", "192.168.0.2", "10.244.2.0/24"), 2, false), "a"},
	} {
		in.Nodes = nodes(own, test.a, test.b)
		s, ps := Compile(in)
		if r, ok := s.Routes[link.RouteKey{Dst: netip.MustParsePrefix("10.244.2.0/24")}]; !ok || r.Via != netip.MustParseAddr("192.168.0.2") {
			t.Errorf("%s: the winner has no route: %v", test.name, r)
		}
		if len(ps) == 0 || slices.ContainsFunc(ps, func(p cluster.Problem) bool { return p.Key.Name != test.problems }) {
			t.Errorf("%s: problems %v, want some of %s and no other", test.name, ps, test.problems)
		}
	}
	// An address among an older node's pods.
	in.Nodes = nodes(own, aged(node("b", "192.168.0.2", "10.244.2.0/24"), 1, false), aged(node("a", "10.244.2.7", "10.244.3.0/24"), 2, false))
	s, ps := Compile(in)
	if _, ok := s.Routes[link.RouteKey{Dst: netip.MustParsePrefix("10.244.2.0/24")}]; !ok || len(ps) != 1 || !strings.HasPrefix(ps[0].String(), "Node a: status.addresses: 10.244.2.7 is in 10.244.2.0/24, the pods of node b") {
		t.Errorf("routes %v, problems %v", s.Routes, ps)
	}
}

func TestCompile_ownNode(t *testing.T) {
	for _, c := range []struct {
		own  *cluster.Node
		want string
	}{
		{node("other", "192.168.0.1", "10.244.1.0/24"), "Node n1: there is no Node object"},
		{node("n1", "", "10.244.1.0/24"), "Node n1: status.addresses: no InternalIP"},
		{node("n1", "192.168.0.1", ""), "Node n1: spec.podCIDRs: empty: start kube-controller-manager with --allocate-node-cidrs"},
	} {
		in := three(Auto)
		in.Nodes = nodes(c.own)
		s, ps := Compile(in)
		if len(ps) != 1 || !strings.HasPrefix(ps[0].String(), c.want) {
			t.Errorf("want %q, got %v", c.want, ps)
		}
		if s.String() != "" || len(in.Check()) != 1 {
			t.Errorf("%s: state\n%s", c.want, s)
		}
	}
}

func TestPodMTU(t *testing.T) {
	v6 := func(m Mode) Input {
		in := three(m)
		in.Nodes = nodes(node("n1", "2001:db8::1", "fd00:244:1::/64"))
		return in
	}
	for _, c := range []struct {
		in   Input
		mtu  int
		want int
	}{
		{three(VXLAN), 1500, 1450}, {three(Auto), 1500, 1450}, {three(Direct), 1500, 1500}, {three(""), 1500, 1450},
		{three(VXLAN), 9001, 8951}, {v6(VXLAN), 1500, 1430}, {v6(Auto), 9000, 8930}, {v6(Direct), 1400, 1400},
		{three(Auto), 0, 1450},
	} {
		c.in.Underlay.MTU = c.mtu
		if got := PodMTU(c.in); got != c.want {
			t.Errorf("%s over MTU %d: %d, want %d", c.in.Config.Mode, c.mtu, got, c.want)
		}
		s, _ := Compile(c.in)
		if l, ok := s.Links[Device]; ok && l.MTU != c.want {
			t.Errorf("%s over MTU %d: the VTEP's is %d, want %d", c.in.Config.Mode, c.mtu, l.MTU, c.want)
		}
	}
}

// TestCompile_podKeepsMTU: an MTU that changes must not split a pair in two sizes.
func TestCompile_podKeepsMTU(t *testing.T) {
	in := three(Auto)
	in.Pods[0].MTU = 8951
	s, _ := Compile(in)
	if got := s.Links["pl0a1b2c3d"].MTU; got != 8951 {
		t.Errorf("pod's link has MTU %d", got)
	}
	if got := s.Links[Device].MTU; got != 1450 {
		t.Errorf("VTEP has MTU %d", got)
	}
}

// TestBase_With: a Base stays what it is, whatever pods are put to it.
func TestBase_With(t *testing.T) {
	in := three(Auto)
	b := NewBase(in)
	bare := b.state.String()
	for _, pods := range [][]Pod{in.Pods, nil, {{Link: "plother", MAC: link.MAC{2}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}}}, in.Pods} {
		in.Pods = pods
		want, _ := Compile(in)
		if got := b.With(pods); got.String() != want.String() {
			t.Errorf("with %d pods\n%s\nwant\n%s", len(pods), got, want)
		}
		if now := b.state.String(); now != bare {
			t.Fatalf("the Base is now\n%s\nand was\n%s", now, bare)
		}
	}
}

func TestGateway(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.244.1.0/24": "10.244.1.1", "fd00:244:1::/64": "fd00:244:1::1", "10.0.0.77/24": "10.0.0.1",
		"10.0.0.0/31": "10.0.0.1", "10.0.0.0/32": "invalid IP", "fd00::/128": "invalid IP",
	} {
		if got := Gateway(netip.MustParsePrefix(cidr)).String(); got != want {
			t.Errorf("%s: %s, want %s", cidr, got, want)
		}
	}
}

func TestVTEPMAC(t *testing.T) {
	seen := map[link.MAC]string{}
	for i := range 5000 {
		name := fmt.Sprintf("node-%d", i)
		mac := VTEPMAC("c", name)
		if mac[0]&3 != 2 {
			t.Fatalf("%s: %s is not unicast and locally administered", name, mac)
		}
		if other, ok := seen[mac]; ok {
			t.Fatalf("%s and %s have %s", name, other, mac)
		}
		seen[mac] = name
	}
	if VTEPMAC("c", "n1") == VTEPMAC("d", "n1") {
		t.Error("two clusters have the same MACs")
	}
	if got := VTEPMAC("test", "n1").String(); got != "f6:24:07:fc:b7:a9" {
		t.Errorf("the MAC of a node must never change between versions, now %s", got)
	}
}

func TestWiring(t *testing.T) {
	in := three(Auto)
	in.Nodes = in.Nodes.With(map[cluster.Key]*cluster.Node{{Name: "n1"}: node("n1", "192.168.0.1", "10.244.1.0/24 10.245.1.0/24 fd00:244:1::/64")})
	for _, c := range []struct{ addrs, want string }{
		{"10.244.1.5 fd00:244:1::5", "[10.244.1.1 fd00:244:1::1]"},
		{"10.245.1.5", "[10.245.1.1]"},
		{"fd00:244:1::5", "[fd00:244:1::1]"},
		{"10.9.9.9", "[10.244.1.1]"}, // of a CIDR that the node had before
	} {
		p := Pod{Link: "pl1", MAC: link.MAC{2, 1}}
		for _, a := range strings.Fields(c.addrs) {
			p.Addrs = append(p.Addrs, netip.MustParseAddr(a))
		}
		spec := Wiring(in, p, "eth0")
		if got := fmt.Sprint(spec.Gateways); got != c.want || spec.MTU != 1450 || spec.HostMAC != HostMAC || spec.PodLink != "eth0" {
			t.Errorf("%s: %+v, want gateways %s", c.addrs, spec, c.want)
		}
		in.Pods = []Pod{p}
		s, _ := Compile(in)
		for _, g := range spec.Gateways {
			if _, ok := s.Addrs[link.Addr{Dev: "pl1", Prefix: netip.PrefixFrom(g, g.BitLen())}]; !ok {
				t.Errorf("%s: the pod's gateway %s is not on its link:\n%s", c.addrs, g, s)
			}
		}
	}
}

// TestCompile_orderIsNothing compiles random clusters, bad nodes among them, built
// in random orders, in one step or many, with detours; all must be the same.
func TestCompile_orderIsNothing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		in := three([]Mode{Auto, Direct, VXLAN}[rnd.IntN(3)])
		for i := range 4 {
			in.Pods = append(in.Pods, Pod{Link: fmt.Sprintf("pl%d", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 244, 1, byte(9 + rnd.IntN(3))})}})
		}
		ns := []*cluster.Node{in.own()}
		for i := range 12 {
			ns = append(ns, randomNode(rnd, i))
		}
		in.Nodes = nodes(ns...)
		want := text(in)
		for range 3 {
			in.Nodes = detours(rnd, ns)
			rnd.Shuffle(len(in.Pods), func(i, j int) { in.Pods[i], in.Pods[j] = in.Pods[j], in.Pods[i] })
			if d := cmp.Diff(want, text(in)); d != "" {
				t.Fatalf("another order gives another State:\n%s", d)
			}
		}
	}
}

func randomNode(rnd *rand.Rand, i int) *cluster.Node {
	addrs := fmt.Sprintf("192.168.%d.%d", rnd.IntN(2), 1+rnd.IntN(20))
	if rnd.IntN(2) == 0 {
		addrs += fmt.Sprintf(" 2001:db8::%x", 1+rnd.IntN(20))
	}
	cidrs := fmt.Sprintf("10.244.%d.0/%d fd00:244:%x::/64", rnd.IntN(14), 22+rnd.IntN(4), rnd.IntN(14))
	n := node(fmt.Sprintf("m%d", i), addrs, cidrs)
	if rnd.IntN(6) == 0 {
		n.PodCIDRs = n.PodCIDRs[:rnd.IntN(2)]
	}
	return n
}

// detours publishes the nodes in random order and steps, with wrong values and
// deletions on the way.
func detours(rnd *rand.Rand, ns []*cluster.Node) cluster.Map[cluster.Node] {
	b := cluster.NewBuilder()
	ns = slices.Clone(ns)
	rnd.Shuffle(len(ns), func(i, j int) { ns[i], ns[j] = ns[j], ns[i] })
	for _, n := range ns {
		switch rnd.IntN(4) {
		case 0:
			b.SetNode(node(n.Name, "192.168.0.250", "10.0.0.0/8"))
		case 1:
			b.Publish()
		case 2:
			b.SetNode(n)
			b.DeleteNode(n.Name)
		}
		same := *n
		b.SetNode(&same)
	}
	return b.Publish().Nodes
}

// BenchmarkCompile is a node of a cluster of 1,000 with 100 pods, the whole of it,
// and the difference that one more pod makes.
func BenchmarkCompile(b *testing.B) {
	var ns []*cluster.Node
	for i := range 1000 {
		ns = append(ns, node(fmt.Sprintf("n%d", i), fmt.Sprintf("192.168.%d.%d 2001:db8::%x", i/250, 1+i%250, i+1),
			fmt.Sprintf("10.%d.%d.0/24 fd00:244:0:%x::/64", 10+i/250, i%250, i)))
	}
	in := three(Auto)
	in.Nodes, in.Pods = nodes(ns...), nil
	for i := range 100 {
		in.Pods = append(in.Pods, Pod{Link: fmt.Sprintf("pl%d", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 10, 1, byte(i + 2)})}})
	}
	have, _ := Compile(in)
	in.Pods = append(in.Pods, Pod{Link: "plx", Addrs: []netip.Addr{netip.MustParseAddr("10.10.1.200")}})
	for b.Loop() {
		want, _ := Compile(in)
		link.Diff(have, want)
	}
}
