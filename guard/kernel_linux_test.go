package guard

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
)

// world is node n1 with one pod, as its agent would make it, on a wire with the
// test's own namespace, which has the addresses of node n2 and of a stranger and
// sends what the test wants.
type world struct {
	n1, pod netns.NsHandle
	in      overlay.Input
	handle  *link.Handle
}

var (
	families = map[string]bool{"IPv4": false, "IPv6": true}
	n1       = map[bool]string{false: "192.0.2.1", true: "2001:db8::1"}
	n2       = map[bool]string{false: "192.0.2.2", true: "2001:db8::2"}
	stranger = map[bool]string{false: "192.0.2.66", true: "2001:db8::66"}
	podAddr  = map[bool]string{false: "10.244.1.5", true: "fd00:244:0:1::5"}
	peerPod  = map[bool]string{false: "10.244.2.9", true: "fd00:244:0:2::9"}
	n3       = map[bool]string{false: "192.0.2.3", true: "2001:db8::3"}
	otherPod = map[bool]string{false: "10.244.3.9", true: "fd00:244:0:3::9"}
	gateway1 = map[bool]string{false: "10.244.1.1", true: "fd00:244:0:1::1"}
	gateway2 = map[bool]string{false: "10.244.2.1", true: "fd00:244:0:2::1"}
	second1  = map[bool]string{false: "10.99.0.1", true: "fd00:99::1"} // of n1, of which the cluster does not know
)

func run(t testing.TB, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	return nettest.Run(t, words[0], words[1:]...)
}

func newWorld(t *testing.T, outer6 bool) *world {
	nettest.New(t)
	w := &world{n1: nettest.Make(t), pod: nettest.Make(t), in: input()}
	if outer6 {
		w.in = only6(w.in)
	}
	run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
	run(t, "ip link add wire type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), w.n1)
	for _, a := range []string{n2[false], stranger[false]} {
		run(t, "ip addr add %s/24 dev wire", a)
	}
	for _, a := range []string{n2[true], stranger[true]} {
		run(t, "ip addr add %s/64 dev wire nodad", a)
	}
	run(t, "ip link set wire up mtu 1300") // so that what is longer comes in fragments
	for v6 := range n1 {                   // the pods' networks and a second address are behind n1
		for _, to := range map[bool][]string{false: {"10.244.1.0/24", second1[v6]}, true: {"fd00:244:0:1::/64", second1[v6]}}[v6] {
			run(t, "ip route add %s via %s dev wire onlink", to, n1[v6])
		}
	}
	nettest.Do(t, w.n1, func() { w.node(t) })
	return w
}

// only6 leaves the nodes their IPv6 addresses, so that VXLAN runs over IPv6.
func only6(in overlay.Input) overlay.Input {
	b := clusterOf(in)
	for _, n := range in.Nodes.All() {
		m := *n
		m.Addresses = m.Addresses[1:]
		b.SetNode(&m)
	}
	in.Nodes = b.Publish().Nodes
	return in
}

func (w *world) node(t *testing.T) {
	run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
	run(t, "ip link set eth0 up")
	run(t, "ip addr add %s/24 dev eth0", n1[false])
	run(t, "ip addr add %s/64 dev eth0 nodad", n1[true])
	run(t, "ip addr add %s/32 dev eth0", second1[false])
	run(t, "ip addr add %s/128 dev eth0 nodad", second1[true])
	run(t, "ip route add default via %s", stranger[false]) // the loose rp_filter wants a route
	var err error
	if w.handle, err = link.Open(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.handle.Close() })
	w.in.Config.Mode = overlay.VXLAN
	if w.in.Underlay, err = w.handle.ReadUnderlay(w.in.Nodes.Get(own).Addresses[0]); err != nil {
		t.Fatal(err)
	}
	w.apply(t)
	p := overlay.Pod{Link: "plpod", MAC: link.MAC{2, 5}, Addrs: []netip.Addr{netip.MustParseAddr(podAddr[false]), netip.MustParseAddr(podAddr[true])}}
	spec := overlay.Wiring(w.in, p, "eth0")
	nettest.Do(t, w.pod, func() {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := w.handle.AddPod(spec, int(w.pod), fd); err != nil {
			t.Fatal(err)
		}
	})
	w.in.Pods = []overlay.Pod{p}
	w.apply(t)
}

func (w *world) apply(t *testing.T) {
	want, problems := overlay.Compile(w.in)
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	have, err := w.handle.Read()
	if err == nil {
		err = w.handle.Apply(link.Diff(have, want))
	}
	if err != nil {
		t.Fatal(err)
	}
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := conn.Commit(Compile(w.in, outside, f).Tx()); err != nil {
			t.Fatal(err)
		}
	}
}

// vxlan is the payload of a UDP packet to a VTEP: an inner UDP packet to port 9000
// of the pod.
func vxlan(from, to string, v6 bool, body int) []byte { return vxlanTo(9000, from, to, v6, body) }

func vxlanTo(port uint16, from, to string, v6 bool, body int) []byte {
	mac := overlay.VTEPMAC("c", "n1")
	b := []byte{8, 0, 0, 0, 0, 0, 1, 0}
	b = append(append(b, mac[:]...), 2, 0, 0, 0, 0, 9)
	src, dst := netip.MustParseAddr(from).AsSlice(), netip.MustParseAddr(to).AsSlice()
	udp := binary.BigEndian.AppendUint16([]byte{0x30, 0x39}, port)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+body))
	udp = append(append(udp, 0, 0), make([]byte, body)...)
	pseudo := append(append([]byte{}, src...), dst...)
	pseudo = append(pseudo, 0, 17, byte(len(udp)>>8), byte(len(udp)))
	binary.BigEndian.PutUint16(udp[6:], sum(append(pseudo, udp...)))
	if v6 {
		b = append(b, 0x86, 0xdd, 0x60, 0, 0, 0, byte(len(udp)>>8), byte(len(udp)), 17, 64)
		return append(append(append(b, src...), dst...), udp...)
	}
	ip := []byte{0x45, 0, byte((20 + len(udp)) >> 8), byte(20 + len(udp)), 0, 0, 0, 0, 64, 17, 0, 0}
	ip = append(append(ip, src...), dst...)
	binary.BigEndian.PutUint16(ip[10:], sum(ip))
	return append(append(append(b, 0x08, 0x00), ip...), udp...)
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// listen gives a socket of a namespace; arrives says whether something comes to it.
func listen(t *testing.T, ns netns.NsHandle, at string, port uint16) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	nettest.Do(t, ns, func() {
		var err error
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(at), port)))
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// arrives takes all there is.
func arrives(c *net.UDPConn) (some bool) {
	for {
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := c.ReadFromUDPAddrPort(make([]byte, 9000)); err != nil {
			return some
		}
		some = true
	}
}

// try sends, and says whether it arrives. What should is sent again for a while: the
// first packets may wait for a neighbour or for the link-local address that a
// solicitation needs.
func try(at *net.UDPConn, should bool, send func()) bool {
	for range 60 {
		send()
		if arrives(at) {
			return true
		}
		if !should {
			return false
		}
	}
	return false
}

// send sends a datagram from an address of a namespace.
func send(t *testing.T, ns netns.NsHandle, from, to string, port uint16, b []byte) {
	t.Helper()
	nettest.Do(t, ns, func() {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 0)),
			net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(to), port)))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	})
}

func here(t *testing.T) netns.NsHandle {
	ns, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// TestVXLAN sends VXLAN packets made by hand to n1: what comes to the pod is what a
// node sent in the name of its own pods.
func TestVXLAN(t *testing.T) {
	for outer, outer6 := range families {
		t.Run("over "+outer, func(t *testing.T) {
			w := newWorld(t, outer6)
			wire := here(t)
			nettest.Do(t, w.n1, func() {
				nettest.Run(t, "nft", fmt.Sprintf("table %s t { chain p { type nat hook prerouting priority -100; udp dport 7777 dnat to %s; }; }", nft.FamilyOf(outer6), netip.AddrPortFrom(netip.MustParseAddr(n1[outer6]), 8472)))
			})
			for inner, v6 := range families {
				pod := listen(t, w.pod, podAddr[v6], 9000)
				for _, c := range []struct {
					name, outer, to, inner string
					port                   uint16
					size                   int
					want                   bool
				}{
					{"a pod of the node", n2[outer6], n1[outer6], peerPod[v6], 8472, 10, true},
					{"in fragments", n2[outer6], n1[outer6], peerPod[v6], 8472, 1370, true},
					{"the other node's pod", n2[outer6], n1[outer6], otherPod[v6], 8472, 10, false},
					{"the other node's pod, in fragments", n2[outer6], n1[outer6], otherPod[v6], 8472, 1370, false},
					{"own pod", n2[outer6], n1[outer6], podAddr[v6], 8472, 10, false},
					{"a stranger", stranger[outer6], n1[outer6], peerPod[v6], 8472, 10, false},
					// What a pod of n2 sends outside of the cluster is masqueraded, and comes as n2's.
					{"a pod that makes VXLAN, to another address", n2[outer6], second1[outer6], peerPod[v6], 8472, 10, false},
					{"the same, in fragments", n2[outer6], second1[outer6], peerPod[v6], 8472, 1370, false},
					{"the same, by a port of the node that leads to the VTEP", n2[outer6], second1[outer6], peerPod[v6], 7777, 10, false},
				} {
					got := try(pod, c.want, func() { send(t, wire, c.outer, c.to, c.port, vxlan(c.inner, podAddr[v6], v6, c.size)) })
					if got != c.want {
						t.Errorf("%s, %s: %s in %s to %s arrives: %v, want %v", c.name, inner, c.inner, c.outer, c.to, got, c.want)
					}
				}
				if v6 {
					continue
				}
				if !try(pod, true, func() { send(t, wire, n2[outer6], n1[outer6], 8472, vxlan("198.51.100.9", podAddr[v6], v6, 10)) }) {
					t.Error("from outside, where that is declared: it does not arrive")
				}
			}
			w.counted(t, nft.FamilyOf(outer6), Inner, Stranger, Astray, Forwarded)
		})
	}
}

// counted demands that the rules of these reasons have dropped something.
func (w *world) counted(t *testing.T, f nft.Family, reasons ...string) {
	t.Helper()
	nettest.Do(t, w.n1, func() {
		conn, err := nft.Dial(0)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		counts, err := Counts(conn, nft.IPv4, nft.IPv6)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range reasons {
			if counts[r] == 0 {
				t.Errorf("%s: %q has dropped nothing: %v", f, r, counts)
			}
		}
	})
}

// TestPod has the pod send what it may not.
func TestPod(t *testing.T) {
	for name, v6 := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			spoofed := map[bool]string{false: "10.244.1.99", true: "fd00:244:0:1::99"}[v6]
			nettest.Do(t, w.pod, func() {
				for _, a := range []string{spoofed, n3[v6]} {
					run(t, "ip addr add %s dev eth0 nodad", map[bool]string{false: a + "/32", true: a + "/128"}[v6])
				}
			})
			node, outside, probe, vtep := listen(t, w.n1, n1[v6], 9000), listen(t, here(t), stranger[v6], 9000), listen(t, w.n1, "::", 8473), listen(t, here(t), n2[v6], 8472)
			probes, tunnel := listen(t, here(t), n2[v6], 8473), vtep
			if v6 {
				tunnel = listen(t, here(t), n2[false], 8472) // the outer family
			}
			rules := Compile(w.in, nil, nft.FamilyOf(v6))
			for _, c := range []struct {
				name, from, to string
				port           uint16
				at             *net.UDPConn
				want           bool
			}{
				{"own, to the node", podAddr[v6], n1[v6], 9000, node, true},
				{"spoofed, to the node", spoofed, n1[v6], 9000, node, false},
				{"a node's, to the node", n3[v6], n1[v6], 9000, node, false},
				{"own, out", podAddr[v6], stranger[v6], 9000, outside, true},
				{"spoofed, out", spoofed, stranger[v6], 9000, outside, false},
				{"to the probes", podAddr[v6], n1[v6], 8473, probe, false},
				{"to another node's VTEP", podAddr[v6], n2[v6], 8472, vtep, false},
				{"to another node's probes", podAddr[v6], n2[v6], 8473, probes, false},
				{"to another node's probes by its gateway", podAddr[v6], gateway2[v6], 8473, tunnel, false},
				{"to another node's gateway", podAddr[v6], gateway2[v6], 9000, tunnel, true},
				{"to the probes by the gateway", podAddr[v6], gateway1[v6], 8473, probe, false},
				{"to the probes by another address", podAddr[v6], second1[v6], 8473, probe, false},
			} {
				if got := try(c.at, c.want, func() { send(t, w.pod, c.from, c.to, c.port, []byte("x")) }); got != c.want {
					t.Errorf("%s: arrives: %v, want %v", c.name, got, c.want)
				}
				if c.from != podAddr[v6] {
					continue
				}
				to := netip.AddrPortFrom(netip.MustParseAddr(c.to), c.port)
				why := rules.ToNode(netip.MustParseAddr(c.from), to, "plpod", false) // the reference
				if c.at != node && c.at != probe {
					why = rules.Forward(to, "plpod", false)
				}
				if (why == "") != c.want {
					t.Errorf("%s: the reference says %q", c.name, why)
				}
			}
			w.counted(t, nft.FamilyOf(v6), Spoofed, FromPod, Forwarded)
		})
	}
}

// TestOwnVTEP sends VXLAN from the pod to its own node's VTEP, and from outside to
// another node's by way of a translation on this one.
func TestOwnVTEP(t *testing.T) {
	w := newWorld(t, false)
	pod, vtep := listen(t, w.pod, podAddr[false], 9000), listen(t, here(t), n2[false], 8472)
	send(t, w.pod, podAddr[false], n1[false], 8472, vxlan(peerPod[false], podAddr[false], false, 10))
	if arrives(pod) {
		t.Error("the pod has reached itself by its node's VTEP")
	}
	nettest.Do(t, w.n1, func() {
		nettest.Run(t, "nft", "table ip t { chain p { type nat hook prerouting priority -100; udp dport 7777 dnat to 192.0.2.2:8472; }; chain q { type nat hook postrouting priority 100; masquerade; }; }")
	})
	send(t, here(t), stranger[false], n1[false], 7777, vxlan(peerPod[false], podAddr[false], false, 10))
	if arrives(vtep) {
		t.Error("a stranger has reached the VTEP of n2 by a Service of n1, with n1's address")
	}
	w.counted(t, nft.IPv4, FromPod, Forwarded)
}

// TestProbes has packets come to the port of the probes, from whom it is for and from
// others: by the underlay, and out of VXLAN to the gateway.
func TestProbes(t *testing.T) {
	for name, v6 := range families {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, false)
			port, wire := listen(t, w.n1, "::", overlay.ProbePort), here(t)
			r := Compile(w.in, outside, nft.FamilyOf(v6))
			for _, c := range []struct {
				name, from, to string
				vxlan          bool
				want           bool
			}{
				{"a node", n2[v6], n1[v6], false, true},
				{"a node, to another address", n2[v6], second1[v6], false, false},
				{"a stranger", stranger[v6], n1[v6], false, false},
				{"a node's gateway", gateway2[v6], gateway1[v6], true, true},
				{"a node's gateway, to another address", gateway2[v6], second1[v6], true, false},
				{"a node's pod", peerPod[v6], gateway1[v6], true, false},
			} {
				got := try(port, c.want, func() {
					if !c.vxlan {
						send(t, wire, c.from, c.to, overlay.ProbePort, []byte("x"))
						return
					}
					send(t, wire, n2[false], n1[false], 8472, vxlanTo(overlay.ProbePort, c.from, c.to, v6, 10))
				})
				if got != c.want {
					t.Errorf("%s: arrives: %v, want %v", c.name, got, c.want)
				}
				by := map[bool]string{true: overlay.Device}[c.vxlan]
				to := netip.AddrPortFrom(netip.MustParseAddr(c.to), overlay.ProbePort)
				if why := r.ToNode(netip.MustParseAddr(c.from), to, by, false); (why == "") != c.want {
					t.Errorf("%s: the reference says %q", c.name, why)
				}
			}
			w.counted(t, nft.FamilyOf(v6), Stranger, Astray)
		})
	}
}

// TestCompare: what is in the kernel is what is wanted, and what somebody takes out of
// it, or puts into it, is told.
func TestCompare(t *testing.T) {
	nettest.New(t)
	conn, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := Compile(input(), outside, nft.IPv4)
	table := nft.Table{Family: nft.IPv4, Name: Name}
	compare := func(what, want string) {
		t.Helper()
		diffs, err := conn.Compare(table, r.Tx())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(diffs, "; "); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	compare("nothing is there", "is missing")
	for harm, want := range map[string]string{
		"":                                   "",
		"flush chain ip podlane-guard input": "chain input has other rules",
		"insert rule ip podlane-guard vxlan accept":                   "chain vxlan has other rules",
		"delete element ip podlane-guard nodes { 192.0.2.2 }":         "set nodes lacks 1 elements, and has 0 that it should not have",
		"add element ip podlane-guard nodes { 192.0.2.9, 192.0.2.8 }": "set nodes lacks 0 elements, and has 2 that it should not have",
	} {
		if err := conn.Commit(r.Tx()); err != nil {
			t.Fatal(err)
		}
		if harm != "" {
			nettest.Run(t, "nft", harm)
		}
		compare(harm, want)
	}
}
