package oracle

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables/apply"
	"github.com/podlane/podlane/test/oracle/tables"
	"github.com/podlane/podlane/test/oracle/world"
)

// The node of kube-proxy's unit tests: the comment over NewFakeProxier.
var (
	tableNode  = []netip.Addr{netip.MustParseAddr("192.168.0.2"), netip.MustParseAddr("2001:db8::1")}
	tableOwn   = []netip.Addr{netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("192.168.99.11"), netip.MustParseAddr("2001:db8:1::2")}
	tablePods  = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00:10::/64")}
	noDetector = "without a way to tell local pods: Podlane knows its pods"
)

// TestUpstreamTables holds Lookup and the kernel to what kube-proxy's own unit tests
// say that packets meet.
func TestUpstreamTables(t *testing.T) {
	nettest.New(t)
	all, err := tables.Read(".")
	if err != nil {
		t.Fatal(err)
	}
	packets, skipped := 0, map[string]int{}
	for _, table := range all {
		line := strings.Trim(table.Line[strings.LastIndexByte(table.Line, ':')+1:], ") ")
		t.Run(fmt.Sprintf("%s, line %s", table.Test, line), func(t *testing.T) {
			switch {
			case !table.LocalDetector:
				skipped[noDetector] += len(table.Packets)
				t.Skip(noDetector)
			}
			packets += len(table.Packets)
			playTable(t, table)
		})
	}
	t.Logf("%d tables, %d packets; left out: %v", len(all), packets, skipped)
	if packets < 90 {
		t.Errorf("%d packets in the tables, there were 90 at least in Kubernetes 1.36", packets)
	}
}

func playTable(t *testing.T, table tables.Table) {
	w, err := world.New(world.Config{Pods: tablePods, Addrs: slices.Concat(tableNode, tableOwn)}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	compiled := compileTable(t, table)
	var conn *nft.Conn
	if err := w.Do(func() (err error) { conn, err = nft.Dial(0); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := apply.New(conn, nft.IPv4, nft.IPv6).Apply(compiled, tableClients(table)); err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Packets {
		g, source := packetGroup(p)
		want := wantedOf(p)
		wrong, got := 0, ""
		for try := 0; try == 0 || wrong == 1 && try <= replays; try++ { // once wrong may be a packet that the machine lost
			if now := shootTable(t, w, p); now != want {
				wrong, got = wrong+1, now
			}
		}
		switch wrong {
		case 0:
		case 1:
			t.Logf("%s: a packet from %s to %s met %q in the kernel once and not again in %d times, want %q", p.Name, source, g.to, got, replays, want)
		default:
			t.Errorf("%s: a packet from %s to %s meets %q in the kernel, want %q", p.Name, source, g.to, got, want)
		}
		if got := plainExpected(g.expected(compiled, source)); got != want {
			t.Errorf("%s: a packet from %s to %s meets %q by Lookup, want %q", p.Name, source, g.to, got, want)
		}
	}
}

// shootTable gives all that so many connections like it meet in the kernel.
func shootTable(t *testing.T, w *world.World, p tables.Packet) string {
	t.Helper()
	g, source := packetGroup(p)
	v := volley{}
	for range 64 {
		v.add(g, source)
	}
	out, err := w.Shoot(v.shots)
	if err != nil {
		t.Fatal(err)
	}
	for i := range out {
		g.seen[1][meetingOf(v.shots[i], out[i])]++
	}
	return plainSeen(g)
}

func compileTable(t *testing.T, table tables.Table) *proxy.Table {
	t.Helper()
	b := cluster.NewBuilder()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "test-node"}}
	for _, a := range tableNode {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	b.SetNode(convert.Node(n))
	b.SetServiceCIDR(convert.ServiceCIDR(&networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: table.ServiceCIDRs}}))
	for _, s := range table.Services {
		b.SetService(convert.Service(s))
	}
	for _, s := range table.Slices {
		if c := convert.EndpointSlice(s); c != nil {
			b.SetSlice(c)
		}
	}
	config := proxy.Config{Node: "test-node", MasqueradeAll: table.MasqueradeAll}
	for _, a := range table.NodePortAddresses {
		config.NodePortAddresses = append(config.NodePortAddresses, netip.MustParsePrefix(a))
	}
	return proxy.CompileAll(b.Publish(), config)
}

// tableClients are the pods that send packets.
func tableClients(table tables.Table) []netip.Addr {
	var pods []netip.Addr
	for _, p := range table.Packets {
		if a := netip.MustParseAddr(p.Source); isPod(a) && !slices.Contains(pods, a) {
			pods = append(pods, a)
		}
	}
	return pods
}

func isPod(a netip.Addr) bool {
	return slices.ContainsFunc(tablePods, func(p netip.Prefix) bool { return p.Contains(a) })
}

func packetGroup(p tables.Packet) (*group, netip.Addr) {
	source, dest := netip.MustParseAddr(p.Source), netip.MustParseAddr(p.Dest)
	c := &client{name: p.Name, kind: proxy.Outside, from: world.Uplink}
	own := func(a netip.Addr) bool { return slices.Contains(tableNode, a) || slices.Contains(tableOwn, a) }
	switch {
	case isPod(source):
		c.kind, c.from = proxy.LocalPod, world.Pods
	case own(source):
		c.kind, c.from = proxy.Host, world.Node
	}
	protocol := cluster.TCP
	if p.Protocol != "" {
		protocol = protocols[corev1.Protocol(strings.ToUpper(p.Protocol))]
	}
	g := &group{target: target{protocol, netip.AddrPortFrom(dest, uint16(p.Port))}, client: c, bound: own(dest), seen: [2]map[meeting]int{{}, {}}}
	return g, source
}

// wantedOf is a row's output in our words.
func wantedOf(p tables.Packet) string {
	switch p.Output {
	case "DROP":
		return "nothing"
	case "REJECT":
		return "refused"
	case "":
		return plain("pass", netip.AddrPortFrom(netip.MustParseAddr(p.Dest), uint16(p.Port)), false)
	}
	want := map[string]bool{}
	for _, to := range strings.Split(p.Output, ", ") {
		want[plain("endpoint", netip.MustParseAddrPort(to), p.Masquerade)] = true
	}
	return plainExpected(want)
}

func plainExpected(want map[string]bool) string {
	var all []string
	for w := range want {
		all = append(all, w)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

func plainSeen(g *group) string {
	all := map[string]bool{}
	for m := range g.seen[1] {
		all[m.plain()] = true
	}
	return plainExpected(all)
}
