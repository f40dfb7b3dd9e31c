package overlay_test

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// world is three nodes on two L2 segments, each node with two pods:
//
//	n1 ── br0 ── n2        192.168.0.0/24  2001:db8::/64
//	       │ router
//	      br1 ── n3        192.168.9.0/24  2001:db8:9::/64
//
// n1, n2, n3 are namespaces; router, with both bridges, is the test's own.
type world struct {
	router netns.NsHandle
	nodes  map[string]*machine
	config overlay.Config
	api    map[string]*cluster.Node
	probed *overlay.Probed
}

type machine struct {
	name string
	ns   netns.NsHandle
	h    *link.Handle
	pods []pod
}

type pod struct {
	overlay.Pod
	ns netns.NsHandle
}

// families says which addresses nodes and pods have: "4", "6" or "46". In direct
// mode there is no n3, which is out of its reach.
func newWorld(t *testing.T, mode overlay.Mode, families string) *world {
	w := &world{
		router: nettest.New(t), nodes: map[string]*machine{}, api: map[string]*cluster.Node{},
		config: overlay.Config{Mode: mode, Cluster: "test"},
	}
	noDAD(t)
	for i, br := range []string{"br0", "br1"} {
		run(t, "ip link add %s type bridge mcast_snooping 0", br)
		run(t, "ip link set %s up", br)
		run(t, "ip addr add 192.168.%d.254/24 dev %s", 9*i, br)
		run(t, "ip addr add 2001:db8:%d::fe/64 dev %s nodad", 9*i, br)
	}
	run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	names := []string{"n1", "n2", "n3"}
	if mode == overlay.Direct {
		names = names[:2]
	}
	for i, name := range names {
		w.addNode(t, name, i+1, families)
	}
	w.ready(t)
	w.apply(t)
	for _, m := range w.sorted() {
		for i := range 2 {
			w.addPod(t, m, i+5)
		}
	}
	return w
}

func run(t testing.TB, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	return nettest.Run(t, words[0], words[1:]...)
}

// ready waits for the underlay: a link solicits no IPv6 neighbour before it has
// its link-local address, up to a second after it has its carrier.
func (w *world) ready(t *testing.T) {
	for _, m := range w.sorted() {
		nettest.Do(t, m.ns, func() {
			for start := time.Now(); run(t, "ip -6 addr show dev eth0 scope link -tentative") == ""; time.Sleep(20 * time.Millisecond) {
				if time.Since(start) > 5*time.Second {
					t.Fatalf("%s: no link-local address on eth0", m.name)
				}
			}
		})
	}
}

// noDAD spares the underlay's links the check for duplicate addresses.
func noDAD(t *testing.T) {
	run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
}

func (w *world) sorted() []*machine {
	return slices.SortedFunc(maps.Values(w.nodes), func(a, b *machine) int { return strings.Compare(a.name, b.name) })
}

func (w *world) addNode(t *testing.T, name string, i int, families string) {
	m := &machine{name: name, ns: nettest.Make(t)}
	segment := 9 * (i / 3)
	run(t, "ip link add to-%s master br%d type veth peer name eth0 netns /proc/%d/fd/%d", name, i/3, os.Getpid(), m.ns)
	run(t, "ip link set to-%s up", name)
	n := &cluster.Node{Key: cluster.Key{Name: name}}
	nettest.Do(t, m.ns, func() {
		noDAD(t)
		run(t, "ip link set eth0 up")
		if strings.Contains(families, "4") {
			run(t, "ip addr add 192.168.%d.%d/24 dev eth0", segment, i)
			run(t, "ip route add default via 192.168.%d.254", segment)
			n.Addresses = append(n.Addresses, netip.AddrFrom4([4]byte{192, 168, byte(segment), byte(i)}))
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i)))
		}
		if strings.Contains(families, "6") {
			run(t, "ip addr add 2001:db8:%d::%d/64 dev eth0 nodad", segment, i)
			run(t, "ip -6 route add default via 2001:db8:%d::fe", segment)
			n.Addresses = append(n.Addresses, netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", segment, i)))
			n.PodCIDRs = append(n.PodCIDRs, netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", i)))
		}
		var err error
		if m.h, err = link.Open(""); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = m.h.Close() })
	w.nodes[name], w.api[name] = m, n
}

// input is what the node's agent would compile from.
func (w *world) input(t *testing.T, m *machine) overlay.Input {
	t.Helper()
	b := cluster.NewBuilder()
	for _, n := range w.api {
		b.SetNode(n)
	}
	in := overlay.Input{Config: w.config, Node: m.name, Nodes: b.Publish().Nodes, Probed: w.probed}
	var err error
	if in.Underlay, err = m.h.ReadUnderlay(w.api[m.name].Addresses[0]); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.pods {
		in.Pods = append(in.Pods, p.Pod)
	}
	return in
}

func (w *world) drift(t *testing.T, m *machine) (ops link.Ops, want link.State) {
	t.Helper()
	want, problems := overlay.Compile(w.input(t, m))
	if len(problems) != 0 {
		t.Fatalf("%s: %v", m.name, problems)
	}
	nettest.Do(t, m.ns, func() {
		have, err := m.h.Read(slices.Collect(maps.Keys(want.Sysctls))...)
		if err != nil {
			t.Fatal(err)
		}
		ops = link.Diff(have, want)
	})
	return ops, want
}

// apply brings every node to its wanted state, and demands that a second time
// there is nothing to do.
func (w *world) apply(t *testing.T) {
	t.Helper()
	for _, m := range w.sorted() {
		ops, _ := w.drift(t, m)
		nettest.Do(t, m.ns, func() {
			if err := m.h.Apply(ops); err != nil {
				t.Fatalf("%s: %v", m.name, err)
			}
		})
		if left, want := w.drift(t, m); len(left) != 0 {
			t.Fatalf("%s: left after apply:\n%swanted:\n%s", m.name, left, want)
		}
	}
}

func (w *world) addPod(t *testing.T, m *machine, i int) {
	t.Helper()
	p := pod{ns: nettest.Make(t)}
	p.Link, p.MAC = fmt.Sprintf("plpod%d", i), link.MAC{2, 0, 0, 0, m.name[1], byte(i)}
	for _, c := range w.api[m.name].PodCIDRs {
		a := c.Addr()
		for range i {
			a = a.Next()
		}
		p.Addrs = append(p.Addrs, a)
	}
	spec := overlay.Wiring(w.input(t, m), p.Pod, "eth0")
	p.MTU = spec.MTU
	nettest.Do(t, p.ns, func() {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := m.h.AddPod(spec, int(p.ns), fd); err != nil {
			t.Fatal(err)
		}
	})
	m.pods = append(m.pods, p)
	w.apply(t)
}

// talk has every pod reach every other, every node every pod, and every pod its
// own node, on all addresses.
func (w *world) talk(t *testing.T) {
	t.Helper()
	for _, from := range w.sorted() {
		for _, to := range w.sorted() {
			for i, server := range to.pods {
				for _, a := range server.Addrs {
					tcp(t, from.name+" to pod", from.ns, server.ns, a)
					for j, client := range from.pods {
						if from != to || i != j {
							tcp(t, "pod of "+from.name+" to pod", client.ns, server.ns, a)
						}
					}
				}
			}
		}
		for _, a := range w.api[from.name].Addresses {
			tcp(t, "pod to own node", from.pods[0].ns, from.ns, a)
		}
	}
}

var payload = bytes.Repeat([]byte("podlane "), 8<<10)

// tcp sends 64 KiB there and back again.
func tcp(t *testing.T, what string, from, to netns.NsHandle, a netip.Addr) {
	t.Helper()
	var l net.Listener
	nettest.Do(t, to, func() {
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(a, 7777).String()); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(c, io.LimitReader(c, int64(len(payload))))
			_ = c.Close()
		}
	}()
	nettest.Do(t, from, func() {
		if err := echo(a); err != nil {
			t.Errorf("%s %s: %v", what, a, err)
		}
	})
}

// echo dials on the calling goroutine's thread: for one literal address package
// net starts no other for it.
func echo(a netip.Addr) error {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 7777).String(), 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	go func() { _, _ = c.Write(payload) }()
	b, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(b, payload) {
		err = fmt.Errorf("%d of %d bytes came back", len(b), len(payload))
	}
	return err
}

// fullSize sends the largest datagram that the pods' MTU allows, not to be
// fragmented, between the first pods of two nodes.
func (w *world) fullSize(t *testing.T, from, to string) {
	t.Helper()
	client, server := w.nodes[from].pods[0], w.nodes[to].pods[0]
	for _, a := range server.Addrs {
		size := client.MTU - 28
		if a.Is6() {
			size = client.MTU - 48
		}
		var l net.PacketConn
		nettest.Do(t, server.ns, func() {
			var err error
			if l, err = net.ListenPacket("udp", netip.AddrPortFrom(a, 7778).String()); err != nil {
				t.Fatal(err)
			}
		})
		nettest.Do(t, client.ns, func() { datagrams(t, a, size) })
		_ = l.SetReadDeadline(time.Now().Add(2 * time.Second))
		b := make([]byte, 64<<10)
		if n, _, err := l.ReadFrom(b); err != nil || n != size {
			t.Errorf("%s to %s: datagram of %d bytes to %s: got %d, %v", from, to, size, a, n, err)
		}
		_ = l.Close()
	}
}

// datagrams sends one of the size, and one that is a byte too long, which the
// kernel must refuse.
func datagrams(t *testing.T, a netip.Addr, size int) {
	t.Helper()
	c, err := net.Dial("udp", netip.AddrPortFrom(a, 7778).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	level, opt := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
	if a.Is6() {
		level, opt = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, opt, unix.IP_PMTUDISC_DO) })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(make([]byte, size+1)); err == nil {
		t.Errorf("%d bytes to %s fit: the pod's MTU is not what it should be", size+1, a)
	}
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Errorf("%d bytes to %s: %v", size, a, err)
	}
}

func TestKernel_talk(t *testing.T) {
	for _, mode := range []overlay.Mode{overlay.VXLAN, overlay.Auto, overlay.Direct} {
		for _, families := range []string{"4", "6", "46"} {
			t.Run(string(mode)+families, func(t *testing.T) {
				w := newWorld(t, mode, families)
				w.talk(t)
				w.fullSize(t, "n1", "n2")
				if mode != overlay.Direct {
					w.fullSize(t, "n1", "n3")
					w.fullSize(t, "n3", "n2")
				}
			})
		}
	}
}

// TestKernel_path counts packets where they go: direct ones past the VTEP, VXLAN
// ones through it.
func TestKernel_path(t *testing.T) {
	w := newWorld(t, overlay.Auto, "46")
	sent := func() (n int) {
		nettest.Do(t, w.nodes["n1"].ns, func() {
			b := run(t, "cat /proc/net/dev")
			for line := range strings.Lines(b) {
				if f := strings.Fields(line); f[0] == overlay.Device+":" {
					_, _ = fmt.Sscan(f[10], &n)
				}
			}
		})
		return n
	}
	for to, tunnelled := range map[string]bool{"n2": false, "n3": true} {
		for _, a := range w.nodes[to].pods[0].Addrs {
			before := sent()
			tcp(t, to, w.nodes["n1"].pods[0].ns, w.nodes[to].pods[0].ns, a)
			if got := sent() - before; (got > 10) != tunnelled {
				t.Errorf("%s (%s): %d packets through the VTEP", to, a, got)
			}
		}
	}
}

// TestKernel_repair breaks a node and repairs it as the agent would: read, diff,
// apply.
func TestKernel_repair(t *testing.T) {
	w := newWorld(t, overlay.Auto, "46")
	for _, c := range []string{
		"ip link set pl-vxlan down; ip link set pl-vxlan up",
		"ip link del pl-vxlan",
		// The addresses and default routes of eth0 are the machine's to restore.
		"ip link set eth0 down; ip link set eth0 up; ip addr replace 2001:db8:0::1/64 dev eth0 nodad; " +
			"ip route replace default via 192.168.0.254; ip -6 route replace default via 2001:db8:0::fe",
		"ip route flush proto 112; ip -6 route flush proto 112",
		"ip link set plpod5 down; ip link set plpod5 up",
	} {
		nettest.Do(t, w.nodes["n1"].ns, func() { nettest.Run(t, "sh", "-ec", c) })
		if ops, _ := w.drift(t, w.nodes["n1"]); len(ops) == 0 {
			t.Errorf("%s: not noticed", c)
		}
		w.apply(t)
		w.talk(t)
		if t.Failed() {
			t.Fatalf("after %s", c)
		}
	}
}

// TestKernel_nodesComeAndGo: nothing of a node that is gone is left, and a node
// under another address is reached there.
func TestKernel_nodesComeAndGo(t *testing.T) {
	w := newWorld(t, overlay.VXLAN, "46")
	gone := w.api["n2"]
	delete(w.api, "n2")
	for _, name := range []string{"n1", "n3"} {
		ops, want := w.drift(t, w.nodes[name])
		nettest.Do(t, w.nodes[name].ns, func() {
			if err := w.nodes[name].h.Apply(ops); err != nil {
				t.Fatal(err)
			}
			mac := overlay.VTEPMAC("test", "n2").String()
			for _, c := range []string{"bridge fdb show", "ip neigh", "ip route", "ip -6 route"} {
				if out := run(t, "%s", c); strings.Contains(out, mac) || strings.Contains(out, "10.244.2.0") || strings.Contains(out, "fd00:244:2") {
					t.Errorf("%s: n2 is still in %q:\n%s\nwanted\n%s", name, c, out, want)
				}
			}
		})
	}
	w.api["n2"] = gone
	nettest.Do(t, w.nodes["n2"].ns, func() {
		run(t, "ip addr del 192.168.0.2/24 dev eth0")
		run(t, "ip addr add 192.168.0.77/24 dev eth0")
		run(t, "ip route replace default via 192.168.0.254")
	})
	moved := *gone
	moved.Addresses = slices.Clone(gone.Addresses)
	moved.Addresses[0] = netip.MustParseAddr("192.168.0.77")
	w.api["n2"] = &moved
	w.apply(t)
	w.talk(t)
}

// TestKernel_modes changes the mode of a living cluster, to and fro.
func TestKernel_modes(t *testing.T) {
	w := newWorld(t, overlay.VXLAN, "46")
	for _, mode := range []overlay.Mode{overlay.Auto, overlay.VXLAN, overlay.Auto} {
		w.config.Mode = mode
		w.apply(t)
		w.talk(t)
		if t.Failed() {
			t.Fatalf("in mode %s", mode)
		}
	}
}

// TestKernel_underlayMTU lowers and raises the underlay's MTU: the VTEP follows,
// and old pods go on talking.
func TestKernel_underlayMTU(t *testing.T) {
	w := newWorld(t, overlay.Auto, "46")
	for _, mtu := range []int{1400, 1500} {
		for _, m := range w.sorted() {
			run(t, "ip link set to-%s mtu %d", m.name, mtu)
			nettest.Do(t, m.ns, func() { run(t, "ip link set eth0 mtu %d", mtu) })
		}
		w.apply(t)
		nettest.Do(t, w.nodes["n1"].ns, func() {
			if out := run(t, "ip link show pl-vxlan"); !strings.Contains(out, fmt.Sprintf("mtu %d ", mtu-50)) {
				t.Errorf("underlay %d: %s", mtu, out)
			}
		})
		w.talk(t)
	}
}
