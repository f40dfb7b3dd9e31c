package bpf

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// world is three nodes on two L2 segments, each with two pods, IPv4 and IPv6:
//
//	n1 ── br0 ── n2        192.168.0.0/24  2001:db8::/64      direct
//	       │ router
//	      br1 ── n3        192.168.9.0/24  2001:db8:9::/64    VXLAN
//
// Each node counts what it forwards in netfilter's forward hook: what has taken
// the normal path.
type world struct {
	router netns.NsHandle
	nodes  []*machine
	api    []*cluster.Node
	pins   string
	attach Attach
}

type machine struct {
	index int // in nodes and api
	name  string
	ns    netns.NsHandle
	link  *link.Handle
	fast  *Handle // nil: off
	pods  []pod
	// probed is what the agent's probes have found; nil: there are none.
	probed *overlay.Probed
	off    map[string]fastpath.Reason
	last   fastpath.State
}

type pod struct {
	overlay.Pod
	ns netns.NsHandle
}

func (p pod) addr(v6 bool) netip.Addr {
	if v6 {
		return p.Addrs[1]
	}
	return p.Addrs[0]
}

var families = map[string]bool{"IPv4": false, "IPv6": true}

// newWorld makes the world, with the fast path on at every node. It skips where
// that cannot be.
func newWorld(t testing.TB, attach Attach) *world {
	t.Helper()
	w := &world{router: nettest.New(t), pins: bpffs(t), attach: attach}
	noDAD(t)
	for i, br := range []string{"br0", "br1"} {
		run(t, "ip link add %s type bridge mcast_snooping 0", br)
		run(t, "ip link set %s up", br)
		run(t, "ip addr add 192.168.%d.254/24 dev %s", 9*i, br)
		run(t, "ip addr add 2001:db8:%d::fe/64 dev %s nodad", 9*i, br)
	}
	run(t, "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	for i := range 3 {
		w.addNode(t, i)
	}
	for _, m := range w.nodes {
		w.ready(t, m)
		m.open(t, w)
	}
	for _, m := range w.nodes {
		w.addPod(t, m, 5)
		w.addPod(t, m, 6)
	}
	return w
}

func run(t testing.TB, format string, args ...any) string {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	return nettest.Run(t, words[0], words[1:]...)
}

func noDAD(t testing.TB) {
	run(t, "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0")
}

func (w *world) addNode(t testing.TB, i int) {
	m := &machine{index: i, name: fmt.Sprintf("n%d", i+1), ns: nettest.Make(t), off: map[string]fastpath.Reason{}}
	segment := 9 * (i / 2)
	run(t, "ip link add to-%s master br%d type veth peer name eth0 netns /proc/%d/fd/%d", m.name, i/2, os.Getpid(), m.ns)
	run(t, "ip link set to-%s up", m.name)
	n := &cluster.Node{Key: cluster.Key{Name: m.name}}
	n.Addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("192.168.%d.%d", segment, i+1)), netip.MustParseAddr(fmt.Sprintf("2001:db8:%d::%d", segment, i+1))}
	n.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", i+1)), netip.MustParsePrefix(fmt.Sprintf("fd00:244:%d::/64", i+1))}
	nettest.Do(t, m.ns, func() {
		noDAD(t)
		run(t, "ip link set eth0 up")
		run(t, "ip addr add %s/24 dev eth0", n.Addresses[0])
		run(t, "ip route add default via 192.168.%d.254", segment)
		run(t, "ip addr add %s/64 dev eth0 nodad", n.Addresses[1])
		run(t, "ip -6 route add default via 2001:db8:%d::fe", segment)
		nft(t, `table inet probe {
			chain forward { type filter hook forward priority 0; counter; ct state new; }
			chain nat { type nat hook prerouting priority 0; }
		}`)
		var err error
		if m.link, err = link.Open(""); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = m.link.Close() })
	w.nodes, w.api = append(w.nodes, m), append(w.api, n)
}

// ready waits for the underlay's link-local address.
func (w *world) ready(t testing.TB, m *machine) {
	nettest.Do(t, m.ns, func() {
		for start := time.Now(); run(t, "ip -6 addr show dev eth0 scope link -tentative") == ""; time.Sleep(20 * time.Millisecond) {
			if time.Since(start) > 5*time.Second {
				t.Fatalf("%s: no link-local address on eth0", m.name)
			}
		}
	})
}

// nft loads rules in the calling thread's namespace.
func nft(t testing.TB, rules string) {
	t.Helper()
	file := t.TempDir() + "/rules"
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	nettest.Run(t, "nft", "-f", file)
}

func (m *machine) open(t testing.TB, w *world) {
	t.Helper()
	nettest.Do(t, m.ns, func() {
		var err error
		m.fast, err = Open(Config{Dir: w.dir(m), Attach: w.attach})
		available(t, err)
	})
	t.Cleanup(func() { nettest.Do(t, m.ns, func() { _ = Remove(w.dir(m)) }) })
}

func (w *world) dir(m *machine) string { return w.pins + "/" + m.name }

func (w *world) input(t testing.TB, m *machine) overlay.Input {
	t.Helper()
	b := cluster.NewBuilder()
	for _, n := range w.api {
		b.SetNode(n)
	}
	in := overlay.Input{Config: overlay.Config{Cluster: "test"}, Node: m.name, Probed: m.probed, Nodes: b.Publish().Nodes}
	nettest.Do(t, m.ns, func() {
		var err error
		if in.Underlay, err = m.link.ReadUnderlay(w.api[m.index].Addresses[0]); err != nil {
			t.Fatal(err)
		}
	})
	for _, p := range m.pods {
		in.Pods = append(in.Pods, p.Pod)
	}
	return in
}

// apply brings a node to its wanted state, as the agent does.
func (w *world) apply(t testing.TB, m *machine) {
	t.Helper()
	in := w.input(t, m)
	want, problems := overlay.Compile(in)
	if len(problems) != 0 {
		t.Fatalf("%s: %v", m.name, problems)
	}
	nettest.Do(t, m.ns, func() {
		have, err := m.link.Read()
		if err == nil {
			err = m.link.Apply(link.Diff(have, want))
		}
		if err != nil {
			t.Fatalf("%s: %v", m.name, err)
		}
		if m.fast == nil {
			return
		}
		devices, err := m.fast.Devices()
		if err != nil {
			t.Fatal(err)
		}
		ipsec, err := IPsec()
		must(t, err)
		m.last = fastpath.Compile(fastpath.Input{Overlay: in, Link: want, Devices: devices, IPsec: ipsec, Off: m.off})
		m.applyFast(t, m.last)
	})
}

func (w *world) addPod(t testing.TB, m *machine, i int) {
	t.Helper()
	p := pod{ns: nettest.Make(t)}
	p.Link, p.MAC = fmt.Sprintf("plpod%d", i), link.MAC{2, 0, 0, 0, byte(m.index), byte(i)}
	for _, c := range w.api[m.index].PodCIDRs {
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
		if err := m.link.AddPod(spec, int(p.ns), fd); err != nil {
			t.Fatal(err)
		}
	})
	m.pods = append(m.pods, p)
	w.apply(t, m)
}

var forwardCounter = regexp.MustCompile(`counter packets (\d+)`)

// forwarded is how many packets took the normal path through the node.
func (m *machine) forwarded(t testing.TB) (n int) {
	t.Helper()
	nettest.Do(t, m.ns, func() {
		match := forwardCounter.FindStringSubmatch(run(t, "nft list chain inet probe forward"))
		if match == nil {
			t.Fatal("no counter")
		}
		n, _ = strconv.Atoi(match[1])
	})
	return n
}

func (m *machine) count(t testing.TB, reason string) uint64 {
	t.Helper()
	counts, err := m.fast.Counters()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range counts {
		if c.Reason == reason {
			return c.Packets
		}
	}
	t.Fatalf("no counter %s", reason)
	return 0
}

// grows runs f and demands that it has the node count packets for the reason.
func (m *machine) grows(t testing.TB, reason string, f func()) {
	t.Helper()
	before := m.count(t, reason)
	f()
	if m.count(t, reason) == before {
		t.Errorf("%s: %s did not grow from %d", m.name, reason, before)
	}
}

// nothing is the State of a node whose fast path is off.
func nothing() fastpath.State { return fastpath.NewState() }

// applyFast is to be called in the node's namespace.
func (m *machine) applyFast(t testing.TB, s fastpath.State) {
	t.Helper()
	must(t, m.fast.Apply(s))
	for left := 1; left > 0; {
		var err error
		left, err = m.fast.AttachSome(2)
		must(t, err)
	}
}
