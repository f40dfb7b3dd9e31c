package hostport

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func port(p cluster.Protocol, host, pod string) Port {
	out := Port{Protocol: p, Pod: netip.MustParseAddrPort(pod)}
	if strings.HasPrefix(host, ":") {
		out.Host = netip.AddrPortFrom(netip.Addr{}, netip.MustParseAddrPort("0.0.0.0"+host).Port())
	} else {
		out.Host = netip.MustParseAddrPort(host)
	}
	return out
}

func procFD(ns int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns) }

func handle(ns int) netns.NsHandle { return netns.NsHandle(ns) }

func TestPorts(t *testing.T) {
	a, b := port(cluster.TCP, ":80", "10.0.0.2:8080"), port(cluster.TCP, ":80", "10.0.0.3:8080")
	u, six := port(cluster.UDP, ":80", "10.0.0.3:8080"), port(cluster.TCP, ":80", "[fd00::2]:8080")
	if got := Ports([]Port{u, b, six, a}, nft.IPv4); len(got) != 2 || got[0] != a || got[1] != u {
		t.Error(got)
	}
	if got := Ports([]Port{u, b, six, a}, nft.IPv6); len(got) != 1 || got[0] != six {
		t.Error(got)
	}
}

func TestFlows(t *testing.T) {
	at := netip.MustParseAddrPort
	a, b := port(cluster.UDP, ":53", "10.0.0.2:5353"), port(cluster.UDP, ":53", "10.0.0.3:5353")
	one, tcp := port(cluster.UDP, "192.0.2.1:53", "10.0.0.4:53"), port(cluster.TCP, ":54", "10.0.0.2:53")
	x := &Flows{}
	check := func(when, dst, answer string, want bool) {
		t.Helper()
		if got := x.Stale(at(dst), at(answer)); got != want {
			t.Errorf("%s: %s answered by %s: %v", when, dst, answer, got)
		}
	}
	check("nothing", "192.0.2.1:53", "192.0.2.1:53", false)
	x.Update([]Port{a, one, tcp})
	check("good", "192.0.2.9:53", "10.0.0.2:5353", false)
	check("untranslated", "192.0.2.9:53", "192.0.2.9:53", true)
	check("of one address", "192.0.2.1:53", "10.0.0.4:53", false)
	check("of one address, by the others' pod", "192.0.2.1:53", "10.0.0.2:5353", true)
	check("TCP", "192.0.2.1:54", "192.0.2.1:54", false)
	check("the other family", "[2001:db8::1]:53", "[2001:db8::1]:53", false)
	x.Update([]Port{b})
	check("replaced", "192.0.2.9:53", "10.0.0.2:5353", true)
	x.Update(nil)
	was := x.Change()
	x.Update(nil)
	check("gone", "192.0.2.9:53", "10.0.0.3:5353", true)
	check("gone, of one address", "192.0.2.1:53", "10.0.0.4:53", true)
	check("gone, and never translated", "192.0.2.9:53", "192.0.2.9:53", false)
	x.Settled(was, false)
	check("a later change is not looked at yet", "192.0.2.9:53", "10.0.0.3:5353", true)
	x.Settled(x.Change(), true)
	check("the other family was looked at", "192.0.2.9:53", "10.0.0.3:5353", true)
	x.Settled(x.Change(), false)
	check("looked at", "192.0.2.9:53", "10.0.0.3:5353", false)
	if x.Any(false) || x.Any(true) {
		t.Error("there is nothing to forget")
	}
}

// TestFlows_begin: of an agent before this one only some is known.
func TestFlows_begin(t *testing.T) {
	at := netip.MustParseAddrPort
	x := &Flows{}
	x.Begin(nil, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/64")})
	x.Update([]Port{port(cluster.UDP, ":53", "10.0.0.2:5353")})
	check := func(when, dst, answer string, want bool) {
		t.Helper()
		if got := x.Stale(at(dst), at(answer)); got != want {
			t.Errorf("%s: %s answered by %s: %v", when, dst, answer, got)
		}
	}
	check("good", "192.0.2.9:53", "10.0.0.2:5353", false)
	check("no port of now", "192.0.2.9:54", "10.0.0.2:5353", true)
	check("untranslated", "192.0.2.9:54", "192.0.2.9:54", false)
	check("untranslated, of the node's own address among pods", "10.0.0.1:54", "10.0.0.1:54", false)
	check("another machine's", "192.0.2.9:54", "10.0.1.2:5353", false)
	x.Settled(x.Change(), false)
	check("looked at", "192.0.2.9:54", "10.0.0.2:5353", false)
	x.Update(nil)
	x.Settled(x.Change(), false)
	if x.Any(false) || !x.Any(true) {
		t.Error("IPv6 alone is left to look at")
	}
	check("the other family", "[2001:db8::1]:54", "[fd00::2]:5353", true)
	x.Settled(x.Change(), true)
	check("looked at", "[2001:db8::1]:54", "[fd00::2]:5353", false)
	if !x.Begun() {
		t.Error("there is nothing left to look at")
	}
}

// TestFromElements reads back from the kernel what was written.
func TestFromElements(t *testing.T) {
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for f, want := range map[nft.Family][]Port{
		nft.IPv4: {port(cluster.UDP, ":53", "10.0.0.2:5353"), port(cluster.TCP, "192.0.2.1:80", "10.0.0.3:8080")},
		nft.IPv6: {port(cluster.UDP, ":53", "[fd00::2]:5353"), port(cluster.TCP, "[2001:db8::1]:80", "[fd00::3]:8080")},
	} {
		if err := conn.Commit(Tx(f, want)); err != nil {
			t.Fatal(err)
		}
		onAll, onOne := Maps(f)
		all, err1 := conn.Elements(onAll)
		one, err2 := conn.Elements(onOne)
		if got := FromElements(f, all, one); err1 != nil || err2 != nil || !slices.Equal(got, want) {
			t.Errorf("%v %v %v, want %v", got, err1, err2, want)
		}
	}
}

// TestTx_kernel connects to ports of a node, from it and from outside, and after a
// change.
func TestTx_kernel(t *testing.T) {
	nettest.New(t)
	pod, outside := nettest.Make(t), nettest.Make(t)
	for name, ns := range map[string]int{"pod": int(pod), "out": int(outside)} {
		nettest.Run(t, "ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", procFD(ns))
	}
	for _, cmd := range []string{"addr add 10.0.0.1/24 dev pod", "link set pod up", "addr add 192.0.2.1/24 dev out", "link set out up"} {
		nettest.Run(t, "ip", strings.Fields(cmd)...)
	}
	nettest.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for ns, addr := range map[int][2]string{int(pod): {"10.0.0.2/24", "10.0.0.1"}, int(outside): {"192.0.2.2/24", "192.0.2.1"}} {
		nettest.Do(t, handle(ns), func() {
			for _, cmd := range []string{"addr add " + addr[0] + " dev eth0", "link set eth0 up", "route add default via " + addr[1]} {
				nettest.Run(t, "ip", strings.Fields(cmd)...)
			}
		})
	}
	var server net.Listener
	nettest.Do(t, pod, func() {
		var err error
		if server, err = net.Listen("tcp", "10.0.0.2:8080"); err != nil {
			t.Fatal(err)
		}
	})
	defer server.Close()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reach := func(addr string, want bool) (is bool) {
		for range 5 { // a link just made loses packets for up to a second
			c, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
			if is = err == nil; is {
				c.Close()
			}
			if is == want {
				break
			}
		}
		return is
	}
	check := func(when string, want map[string]bool) {
		t.Helper()
		for addr, is := range want {
			if got := reach(addr, is); got != is {
				t.Errorf("%s: from the node, %s: %v", when, addr, got)
			}
			for who, ns := range map[string]int{"outside": int(outside), "the pod itself": int(pod)} {
				nettest.Do(t, handle(ns), func() {
					if got := reach(addr, is); got != is {
						t.Errorf("%s: from %s, %s: %v", when, who, addr, got)
					}
				})
			}
		}
	}
	commit := func(ps ...Port) {
		t.Helper()
		if err := conn.Commit(Tx(nft.IPv4, Ports(ps, nft.IPv4))); err != nil {
			t.Fatal(err)
		}
	}
	commit(port(cluster.TCP, ":80", "10.0.0.2:8080"), port(cluster.TCP, "192.0.2.1:81", "10.0.0.2:8080"))
	check("at first", map[string]bool{"192.0.2.1:80": true, "10.0.0.1:80": true, "192.0.2.1:81": true, "10.0.0.1:81": false, "192.0.2.1:82": false})
	commit(port(cluster.TCP, ":82", "10.0.0.2:8080"))
	check("after a change", map[string]bool{"192.0.2.1:80": false, "192.0.2.1:82": true, "192.0.2.1:81": false})
	commit()
	check("without ports", map[string]bool{"192.0.2.1:82": false})
	if err := conn.Commit(Tx(nft.IPv6, Ports([]Port{port(cluster.UDP, ":80", "[fd00::2]:8080")}, nft.IPv6))); err != nil {
		t.Error(err)
	}
}
