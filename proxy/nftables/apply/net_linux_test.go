package apply

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// world is a node, which the test runs in, and what is around it:
//
//	pod a ── veth ──┐          ┌── pod r, on another node (routed)
//	pod b ── veth ──┤   node   │
//	                └──────────┴── outside, a host of no cluster
type world struct {
	t          testing.TB
	v6         bool
	node, a, b place
	r, outside place
}

// place is a namespace with its address.
type place struct {
	name string
	ns   netns.NsHandle
	addr netip.Addr
}

func newWorld(t testing.TB, v6 bool) *world {
	t.Helper()
	w := &world{t: t, v6: v6, node: place{name: "node", ns: nettest.New(t)}}
	for _, s := range []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/all/accept_dad=0", "ipv6/conf/default/accept_dad=0"} {
		sysctl(t, s)
	}
	pick := func(v4, v6 string) string {
		if w.v6 {
			return v6
		}
		return v4
	}
	gateway := pick("10.244.1.1", "fd00:244:1::1")
	w.node.addr = netip.MustParseAddr(pick("192.0.2.1", "fd00:192::1"))
	w.a = w.attach("a", pick("10.244.1.2", "fd00:244:1::2"), gateway)
	w.b = w.attach("b", pick("10.244.1.3", "fd00:244:1::3"), gateway)
	w.r = w.attach("r", pick("10.244.2.2", "fd00:244:2::2"), pick("198.51.100.1", "fd00:198::1"))
	w.outside = w.attach("o", pick("192.0.2.9", "fd00:192::9"), w.node.addr.String())
	nettest.Run(t, "ip", "route", "add", "default", "via", w.outside.addr.String())
	for _, p := range []place{w.a, w.b, w.r, w.outside} {
		w.waitForLink(p, gateway)
	}
	return w
}

// waitForLink waits until packets pass both ways: the kernel drops what is sent
// on a new link for up to a second.
func (w *world) waitForLink(p place, gateway string) {
	w.t.Helper()
	for range 50 {
		start := time.Now()
		_, err := w.dial(p, "tcp", netip.AddrPortFrom(netip.MustParseAddr(gateway), 1))
		if errors.Is(err, syscall.ECONNREFUSED) && time.Since(start) < 300*time.Millisecond {
			return
		}
	}
	w.t.Fatalf("%s cannot reach the node", p.name)
}

func sysctl(t testing.TB, s string) {
	t.Helper()
	path, value, _ := strings.Cut(s, "=")
	nettest.Run(t, "sh", "-c", "echo "+value+" > /proc/sys/net/"+path)
}

// attach makes a namespace that is joined to the node by a veth and has the
// node's end as its gateway.
func (w *world) attach(name, addr, gateway string) place {
	t := w.t
	t.Helper()
	p := place{name: name, ns: nettest.Make(t), addr: netip.MustParseAddr(addr)}
	host := fmt.Sprint(p.addr.BitLen())
	ip := func(args ...string) { t.Helper(); nettest.Run(t, "ip", args...) }
	ip("link", "add", "v"+name, "type", "veth", "peer", "name", "tmp"+name)
	nettest.Do(t, p.ns, func() { sysctl(t, "ipv6/conf/default/accept_dad=0") })
	moveLink(t, "tmp"+name, p.ns)
	ip("addr", "add", gateway+"/"+host, "dev", "v"+name, "nodad")
	ip("link", "set", "v"+name, "up")
	ip("route", "add", addr+"/"+host, "dev", "v"+name)
	nettest.Do(t, p.ns, func() {
		ip("addr", "add", addr+"/"+host, "dev", "tmp"+name, "nodad")
		ip("link", "set", "tmp"+name, "up")
		ip("route", "add", gateway+"/"+host, "dev", "tmp"+name)
		ip("route", "add", "default", "via", gateway, "dev", "tmp"+name)
	})
	return p
}

// server answers every TCP connection and UDP datagram with its place's name and
// the client's address, line by line, until the test ends.
func (w *world) server(p place, port uint16) netip.AddrPort {
	w.t.Helper()
	at := netip.AddrPortFrom(p.addr, port)
	var l net.Listener
	var u net.PacketConn
	var err1, err2 error
	nettest.Do(w.t, p.ns, func() {
		l, err1 = net.Listen("tcp", at.String())
		u, err2 = net.ListenPacket("udp", at.String())
	})
	if err := errors.Join(err1, err2); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close(); _ = u.Close() })
	go serveTCP(l, p.name)
	go serveUDP(u, p.name)
	return at
}

func serveTCP(l net.Listener, name string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for s := bufio.NewScanner(c); s.Scan(); {
				fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
			}
		}()
	}
}

func serveUDP(u net.PacketConn, name string) {
	buf := make([]byte, 100)
	for {
		_, from, err := u.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = fmt.Fprintf(writerTo{u, from}, "%s %s\n", name, from.(*net.UDPAddr).AddrPort().Addr())
	}
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// lockInto brings the calling goroutine into a namespace for good.
func lockInto(ns netns.NsHandle) {
	runtime.LockOSThread()
	_ = netns.Set(ns)
}

// askHere is ask from the calling thread's namespace.
func askHere(network string, to netip.AddrPort) (server string, source netip.Addr, err error) {
	c, err := net.DialTimeout(network, to.String(), 5*time.Second)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer c.Close()
	return question(c)
}

// dial opens a connection from a place.
func (w *world) dial(from place, network string, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	var err error
	nettest.Do(w.t, from.ns, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err = (&net.Dialer{}).DialContext(ctx, network, to.String())
	})
	return c, err
}

// ask makes a new connection and gives the name of the server and the source it
// saw.
func (w *world) ask(from place, network string, to netip.AddrPort) (server string, source netip.Addr, err error) {
	c, err := w.dial(from, network, to)
	if err != nil {
		return "", netip.Addr{}, err
	}
	defer c.Close()
	return question(c)
}

func question(c net.Conn) (server string, source netip.Addr, err error) {
	return questionFor(c, 5*time.Second)
}

func questionFor(c net.Conn, limit time.Duration) (server string, source netip.Addr, err error) {
	_ = c.SetDeadline(time.Now().Add(limit))
	if _, err := c.Write([]byte("?\n")); err != nil {
		return "", netip.Addr{}, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", netip.Addr{}, err
	}
	name, addr, _ := strings.Cut(strings.TrimSpace(line), " ")
	source, err = netip.ParseAddr(addr)
	return name, source, err
}

// vip is a frontend of the world's family.
func (w *world) vip(n byte, port uint16) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{10, 96, 0, n})
	if w.v6 {
		a = netip.AddrFrom16([16]byte{0xfd, 0x96, 15: n})
	}
	return netip.AddrPortFrom(a, port)
}

// service makes a Service with a TCP and a UDP port.
func (w *world) service(name string, vip netip.AddrPort, backends ...netip.AddrPort) *proxy.Entry {
	e := &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: name}}
	for _, p := range []cluster.Protocol{cluster.TCP, cluster.UDP} {
		port := proxy.Port{Name: strings.ToLower(p.String()), Protocol: p, Frontends: clusterIPs(vip)}
		port.Endpoints = endpoints(backends, backends)
		e.Ports = append(e.Ports, port)
	}
	return e
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

func (w *world) pods() []netip.Addr { return []netip.Addr{w.a.addr, w.b.addr} }

// applier connects in the node.
func applier(t testing.TB) (*Applier, *nft.Conn) {
	t.Helper()
	c, err := nft.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return New(c, nft.IPv4, nft.IPv6), c
}

func table(entries ...*proxy.Entry) *proxy.Table { return with(&proxy.Table{}, entries...) }

// with gives the Table with entries added or replaced; one without ports is
// removed.
func with(t *proxy.Table, entries ...*proxy.Entry) *proxy.Table {
	set := map[cluster.Key]*proxy.Entry{}
	for _, e := range entries {
		set[e.Key] = e
		if len(e.Ports) == 0 {
			set[e.Key] = nil
		}
	}
	return &proxy.Table{Services: t.Services.With(set), NodePorts: t.NodePorts, ServiceCIDRs: t.ServiceCIDRs}
}

func apply(t testing.TB, a proxier, tb *proxy.Table, pods []netip.Addr) {
	t.Helper()
	if err := a.Apply(tb, pods); err != nil {
		t.Fatal(err)
	}
}

func eachFamily(t *testing.T, f func(t *testing.T, w *world)) {
	for _, v6 := range []bool{false, true} {
		name := "IPv4"
		if v6 {
			name = "IPv6"
		}
		t.Run(name, func(t *testing.T) { f(t, newWorld(t, v6)) })
	}
}

// moveLink gives a link to a namespace.
func moveLink(t testing.TB, link string, ns netns.NsHandle) {
	t.Helper()
	l, err := netlink.LinkByName(link)
	if err == nil {
		err = netlink.LinkSetNsFd(l, int(ns))
	}
	if err != nil {
		t.Fatalf("move %s: %v", link, err)
	}
}
