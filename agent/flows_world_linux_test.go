package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// world is a node whose pods answer on addresses of its own, and a client:
//
//	client 192.0.2.2 ═ veth ═ 192.0.2.1 node: 10.244.0.2, 10.244.0.3 (UDP 5353)
//	fd00:2::2                 fd00:2::1       fd00:244::2, fd00:244::3
type world struct {
	t       *testing.T
	client  netns.NsHandle
	builder *cluster.Builder
	last    *cluster.Snapshot
	table   *proxy.Table
	backend Backend
	*services
	flows   *flows
	metrics *ports.Metrics
}

func newWorld(t *testing.T) *world { return newWorldOf(t, NFTables) }

func newWorldOf(t *testing.T, b Backend) *world {
	t.Helper()
	nettest.New(t)
	w := &world{t: t, client: nettest.Make(t), builder: cluster.NewBuilder(), last: &cluster.Snapshot{}, table: &proxy.Table{}, backend: b}
	ip := func(args ...string) { nettest.Run(t, "ip", args...) }
	ip("link", "add", "c", "type", "veth", "peer", "name", "toclient")
	for _, a := range []string{"192.0.2.1/24", "fd00:2::1/64"} {
		ip("addr", "add", a, "dev", "toclient", "nodad")
	}
	for _, a := range []string{"10.244.0.2/32", "10.244.0.3/32", "fd00:244::2/128", "fd00:244::3/128"} {
		ip("addr", "add", a, "dev", "lo", "nodad")
	}
	ip("link", "set", "toclient", "up")
	nettest.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	move(t, "c", w.client)
	nettest.Do(t, w.client, func() {
		for _, a := range []string{"192.0.2.2/24", "fd00:2::2/64"} {
			ip("addr", "add", a, "dev", "c", "nodad")
		}
		ip("link", "set", "c", "up")
		ip("route", "add", "default", "via", "192.0.2.1")
		ip("route", "add", "default", "via", "fd00:2::1")
	})
	for _, a := range []string{"10.244.0.2", "10.244.0.3", "fd00:244::2", "fd00:244::3"} {
		w.echo(netip.AddrPortFrom(netip.MustParseAddr(a), 5353))
	}
	w.metrics = ports.NewMetrics(flowLevel, func() *proxy.Table { return w.table }, nil)
	w.begin()
	w.builder.SetNode(&cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:2::1")},
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24"), netip.MustParsePrefix("fd00:244::/64")}})
	return w
}

func move(t *testing.T, dev string, to netns.NsHandle) {
	t.Helper()
	nettest.Run(t, "ip", "link", "set", dev, "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(to)))
}

// echo answers each datagram with its own address.
func (w *world) echo(at netip.AddrPort) {
	w.t.Helper()
	l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := l.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = l.WriteToUDPAddrPort([]byte(at.Addr().String()), from)
		}
	}()
}

// set gives the Service its endpoints, and has them applied.
func (w *world) set(endpoints ...int) {
	w.t.Helper()
	w.endpoints(endpoints...)
	w.apply()
}

// endpoints gives the Service its endpoints, by the last part of their addresses.
func (w *world) endpoints(endpoints ...int) {
	key := cluster.Key{Namespace: "default", Name: "dns"}
	w.builder.SetService(&cluster.Service{Key: key, Type: cluster.NodePort,
		ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00:96::10")},
		Ports:      []cluster.ServicePort{{Protocol: cluster.UDP, Port: 53, NodePort: 30053}}})
	for _, v6 := range []bool{false, true} {
		format := map[bool]string{false: "10.244.0.%d", true: "fd00:244::%d"}[v6]
		s := &cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: fmt.Sprint("dns-", v6)}, Service: "dns", IPv6: v6,
			Ports: []cluster.EndpointPort{{Protocol: cluster.UDP, Port: 5353}}}
		for _, e := range endpoints {
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Address: netip.MustParseAddr(fmt.Sprintf(format, e)), Ready: true, Serving: true, Node: "n1"})
		}
		w.builder.SetSlice(s)
	}
}

// begin is the start of an agent, of what knows the rules and the flows.
func (w *world) begin() {
	w.t.Helper()
	log := slog.New(slog.DiscardHandler)
	w.services, w.flows = &services{}, newFlows(log, w.metrics)
	if err := w.open(log); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(w.services.close)
	w.services.backend = backend{log: log, record: filepath.Join(w.t.TempDir(), "proxy-backend")}
	w.services.backend.choose(w.backend, w.conn, true)
}

// apply brings what is built to the kernel, then looks at the flows, as the agent
// does: here on the test's own thread, which is in the node.
func (w *world) apply() {
	w.t.Helper()
	if err := w.bring(); err != nil {
		w.t.Fatal(err)
	}
	if err := errors.Join(w.flows.look(brought{w.table, w.has()}), w.flows.lookBare()); err != nil {
		w.t.Fatal(err)
	}
}

// bring brings what is built to the kernel, as far as that goes.
func (w *world) bring() error {
	s := w.builder.Publish()
	w.table, w.last = proxy.Compile(w.table, w.last, s, proxy.Config{Node: "n1"}), s
	w.flows.coming.Store(w.table)
	err := w.services.apply(&plan.Plan{Table: w.table})
	w.flows.had(w.applier.Found())
	if w.built() {
		w.flows.bare, w.flows.due = &built{table: w.table}, [2]bool{true, true}
	}
	return err
}

// dial gives a client's socket: it keeps its port, and so its flow.
func (w *world) dial(to string) *net.UDPConn {
	w.t.Helper()
	var conn *net.UDPConn
	nettest.Do(w.t, w.client, func() {
		var err error
		if conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
			w.t.Fatal(err)
		}
	})
	w.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask gives who answers, or why nobody does.
func ask(conn *net.UDPConn) string {
	buf := make([]byte, 64)
	_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	_, err := conn.Write([]byte("?"))
	n := 0
	if err == nil {
		n, err = conn.Read(buf)
	}
	switch {
	case err == nil:
		return string(buf[:n])
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	}
	return "nothing"
}

// ids gives the flows to a port by the client's port.
func (w *world) ids(v6 bool) map[netip.AddrPort]uint32 {
	w.t.Helper()
	conn, err := conntrack.Dial(0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ids := map[netip.AddrPort]uint32{}
	if err := conn.Each(uint8(cluster.UDP), v6, func(f conntrack.Flow) { ids[f.Orig.Src] = f.ID }); err != nil {
		w.t.Fatal(err)
	}
	return ids
}

func local(c *net.UDPConn) netip.AddrPort { return netip.MustParseAddrPort(c.LocalAddr().String()) }
