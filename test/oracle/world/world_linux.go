// Package world is a node in a network namespace, with wires to its pods and to the
// outside. Packets are put on the wires, or begin on the node itself, and where each
// of them comes out is seen on the wires and on the node. It knows nothing of
// Services.
//
//	           ┌──────── node ────────┐
//	local pods ┤ pods          uplink ├ all others
//	           └── raw sockets: itself ┘
package world

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Config is what a node has.
type Config struct {
	// Pods are the ranges of the node's pods: they are behind the wire to the pods,
	// and all else is behind the uplink.
	Pods []netip.Prefix
	// Addrs are the node's addresses. The wires have others, below, so that a source
	// address that was replaced is told from one of the node.
	Addrs []netip.Addr
}

// The addresses of the node's ends of the wires.
var (
	PodWire    = []netip.Prefix{netip.MustParsePrefix("198.18.1.1/32"), netip.MustParsePrefix("fd00:198:1::1/128")}
	UplinkWire = []netip.Prefix{netip.MustParsePrefix("198.18.2.1/32"), netip.MustParsePrefix("fd00:198:2::1/128")}
)

// World is a node. Its methods may be called from any one goroutine at a time.
type World struct {
	calls chan func()
	ends  []wireEnd // in the order of From
	node  []rawSocket
	raw   [2]int     // sockets that send from the node, IPv4 and IPv6
	pod   netip.Addr // an address behind the pods' wire
	batch
}

// New makes a node. cpu pins its work, so that packets come out in order.
func New(c Config, cpu int) (*World, error) {
	w := &World{calls: make(chan func()), batch: batch{cookie: firstCookie, first: firstCookie}}
	ready := make(chan error)
	go w.run(cpu, ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("new network namespace: %w", err)
	}
	err := w.Do(func() error { return w.setUp(c) })
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("set up a node: %w", err)
	}
	return w, nil
}

// run is the thread in the namespace. It is never unlocked, so it ends with it.
func (w *World) run(cpu int, ready chan<- error) {
	runtime.LockOSThread()
	ns, err := netns.New()
	if err == nil {
		defer ns.Close()
		var set unix.CPUSet
		set.Set(cpu % runtime.NumCPU())
		_ = unix.SchedSetaffinity(0, &set) // where it is forbidden, it works as well
	}
	ready <- err
	if err != nil {
		return
	}
	for f := range w.calls {
		f()
	}
}

// Do runs f on the thread that is in the namespace. Programs that f starts are in
// the namespace too.
func (w *World) Do(f func() error) error {
	done := make(chan error)
	w.calls <- func() { done <- f() }
	return <-done
}

// Close ends the node.
func (w *World) Close() {
	_ = w.Do(func() error { w.closeSockets(); return nil })
	close(w.calls)
}

// sysctls: nothing limits how many refusals a second are sent.
var sysctls = map[string]string{
	"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
	"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
	"ipv6/conf/all/accept_dad": "0", "ipv6/conf/default/accept_dad": "0",
	"ipv4/icmp_ratemask": "0", "ipv6/icmp/ratemask": "255",
	"ipv4/conf/all/accept_local": "1", // a packet may come with an address of the node itself
}

func (w *World) setUp(c Config) error {
	for name, value := range sysctls {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	// The sequence numbers are cookies, and not those of a connection.
	_ = os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", []byte("1"), 0)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	for _, a := range c.Addrs {
		if err := w.bind(lo, a); err != nil {
			return err
		}
	}
	if err := w.wire("pods", PodWire, c.Pods); err != nil {
		return err
	}
	everything := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	if err := w.wire("uplink", UplinkWire, everything); err != nil {
		return err
	}
	w.pod = c.Pods[0].Addr()
	for range 251 {
		w.pod = w.pod.Next()
	}
	if err := w.openSockets(); err != nil {
		return err
	}
	return w.await()
}

// wire makes a veth without address resolution, whose far end has no address: what
// arrives there is read, and what is written there arrives at the node.
func (w *World) wire(name string, addrs, routes []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	attrs.TxQLen = 10000
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "-far"}); err != nil {
		return fmt.Errorf("veth %s: %w", name, err)
	}
	near, err1 := netlink.LinkByName(name)
	far, err2 := netlink.LinkByName(name + "-far")
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for _, l := range []netlink.Link{near, far} {
		if err := errors.Join(netlink.LinkSetARPOff(l), netlink.LinkSetUp(l)); err != nil {
			return fmt.Errorf("link %s: %w", l.Attrs().Name, err)
		}
	}
	for _, a := range addrs {
		if err := w.bind(near, a.Addr()); err != nil {
			return err
		}
	}
	for _, r := range routes {
		route := &netlink.Route{LinkIndex: near.Attrs().Index, Dst: ipNet(r), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s: %w", r, err)
		}
	}
	end, err := openEnd(far.Attrs().Index, near.Attrs().HardwareAddr)
	if err != nil {
		return fmt.Errorf("packet socket on %s-far: %w", name, err)
	}
	w.ends = append(w.ends, end)
	return nil
}

func (w *World) bind(l netlink.Link, a netip.Addr) error {
	n := ipNet(netip.PrefixFrom(a, a.BitLen()))
	addr := &netlink.Addr{IPNet: n}
	if a.Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrAdd(l, addr); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("address %s: %w", a, err)
	}
	return nil
}

// Bind gives the node one more address, or takes it away.
func (w *World) Bind(a netip.Addr, bound bool) error {
	return w.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if bound {
			return w.bind(lo, a)
		}
		return netlink.AddrDel(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen()))})
	})
}

// Forget makes the node forget all connections.
func (w *World) Forget() error {
	return w.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}
