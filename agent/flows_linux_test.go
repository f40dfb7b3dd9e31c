package agent

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

func TestFlows(t *testing.T) {
	for name, tc := range map[string]struct {
		vip, direct, a, b string
		v6                bool
	}{
		"cluster IP, IPv4": {"10.96.0.10:53", "10.244.0.3:5353", "10.244.0.2", "10.244.0.3", false},
		"cluster IP, IPv6": {"[fd00:96::10]:53", "[fd00:244::3]:5353", "fd00:244::2", "fd00:244::3", true},
		"node port, IPv4":  {"192.0.2.1:30053", "10.244.0.3:5353", "10.244.0.2", "10.244.0.3", false},
		"node port, IPv6":  {"[fd00:2::1]:30053", "[fd00:244::3]:5353", "fd00:244::2", "fd00:244::3", true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			want := func(what string, c *net.UDPConn, answer string) {
				t.Helper()
				got := ask(c)
				for range 3 { // an ICMP error may be of the datagram before
					if got == answer {
						return
					}
					got = ask(c)
				}
				t.Errorf("%s: answered by %s, want %s", what, got, answer)
			}
			w.set(2)
			c, direct := w.dial(tc.vip), w.dial(tc.direct)
			want("one endpoint", c, tc.a)
			want("past the Service", direct, tc.b)
			good := w.ids(tc.v6)
			w.set(2, 3)
			want("one more", c, tc.a)
			if now := w.ids(tc.v6); now[local(c)] != good[local(c)] || good[local(c)] == 0 {
				t.Errorf("a good flow was touched: %d, was %d", now[local(c)], good[local(c)])
			}
			w.set(3)
			want("the first one has gone", c, tc.b)
			w.set()
			want("none is left", c, "refused")
			w.set(2)
			want("the first one again", c, tc.a)
			w.builder.DeleteService(cluster.Key{Namespace: "default", Name: "dns"})
			w.apply()
			if _, there := w.ids(tc.v6)[local(c)]; there {
				t.Error("the Service is deleted, its flow is there")
			}
			want("past the Service", direct, tc.b)
			if now := w.ids(tc.v6); now[local(direct)] != good[local(direct)] || good[local(direct)] == 0 {
				t.Errorf("a flow that is not ours was touched: %d, was %d", now[local(direct)], good[local(direct)])
			}
		})
	}
}

// nowhere gives the cluster IPs a way out of the node, on which nobody answers.
func (w *world) nowhere() {
	for _, line := range []string{"link add out type veth peer name nowhere", "link set nowhere up", "link set out up",
		"route add 10.96.0.0/16 via 198.51.100.2 dev out onlink", "neigh add 198.51.100.2 lladdr 02:00:00:00:00:02 dev out"} {
		nettest.Run(w.t, "ip", strings.Fields(line)...)
	}
}

// TestFlows_flushed: somebody else deletes our table. What begins before it is there
// again goes untranslated, UDP and TCP, and would for as long as the client tries.
func TestFlows_flushed(t *testing.T) {
	t.Run("nftables", func(t *testing.T) {
		w := newWorld(t)
		table := nftables.NewRuleset(nft.IPv4, nftables.Names[0]).Table
		w.flushed("nft delete table ip "+table.Name, func() { w.changed(nft.Event{Table: table, Gone: true}) })
	})
	t.Run("iptables", func(t *testing.T) {
		if out, err := exec.Command("ip6tables-restore", "--test").CombinedOutput(); err != nil {
			t.Skipf("iptables does not work here: %v %s", err, out)
		}
		w := newWorldOf(t, IPTables)
		w.flushed("iptables -t nat -F && iptables -F", func() { w.audit(&plan.Plan{Table: w.table}) })
	})
}

// flushed has harm done to the rules, and told.
func (w *world) flushed(harm string, tell func()) {
	t := w.t
	listener, err := net.Listen("tcp", "10.244.0.2:5353")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	w.set(2)
	tcp := cluster.Key{Namespace: "default", Name: "tcp"}
	w.builder.SetService(&cluster.Service{Key: tcp, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.11")},
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 53}}})
	w.builder.SetSlice(&cluster.EndpointSlice{Key: tcp, Service: "tcp", Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 5353}},
		Endpoints: []cluster.Endpoint{{Address: netip.MustParseAddr("10.244.0.2"), Ready: true, Serving: true, Node: "n1"}}})
	w.apply()
	w.nowhere()
	// Flows are tracked for others too.
	nettest.Run(t, "nft", "table ip other { chain c { type filter hook prerouting priority 0; ct state new counter; }; }")
	nettest.Run(t, "sh", "-ec", harm)

	udp, conn := w.dial("10.96.0.10:53"), w.connect([4]byte{10, 96, 0, 11}, 53)
	for range 50 { // a link just made loses packets for up to a second
		ask(udp)
		if w.ids(false)[local(udp)] != 0 && w.unansweredTCP() > 0 {
			break
		}
	}
	if w.ids(false)[local(udp)] == 0 || w.unansweredTCP() == 0 {
		t.Fatal("the kernel has no such flows, so the test shows nothing")
	}
	tell()
	w.apply()
	if got := ask(udp); got != "10.244.0.2" {
		t.Errorf("UDP: answered by %s", got)
	}
	ready := []unix.PollFd{{Fd: int32(conn), Events: unix.POLLOUT}}
	if n, err := unix.Poll(ready, 20_000); n != 1 || err != nil {
		t.Errorf("TCP: no connection (%v); %d flows without an answer", err, w.unansweredTCP())
	}
	if code, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, unix.SO_ERROR); code != 0 || err != nil {
		t.Errorf("TCP: %v %v", syscall.Errno(code), err)
	}
}

// connect begins a TCP connection from the client, and does not wait for it.
func (w *world) connect(to [4]byte, port int) (fd int) {
	w.t.Helper()
	var err error
	nettest.Do(w.t, w.client, func() {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to, Port: port}); errors.Is(err, unix.EINPROGRESS) {
			err = nil
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// unansweredTCP counts the TCP flows to the Service of TestFlows_flushed that nobody
// has answered.
func (w *world) unansweredTCP() (n int) {
	w.t.Helper()
	conn, err := conntrack.Dial(0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Each(uint8(cluster.TCP), false, func(f conntrack.Flow) {
		if f.Orig.Dst == netip.MustParseAddrPort("10.96.0.11:53") && !f.Answered {
			n++
		}
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

// TestFlows_untranslated: a client that sends before the Service exists has a flow
// that leads elsewhere, and its datagrams would follow it for ever.
func TestFlows_untranslated(t *testing.T) {
	w := newWorld(t)
	w.apply() // flows are tracked
	w.nowhere()
	c := w.dial("10.96.0.10:53")
	if got := ask(c); got != "nothing" {
		t.Fatalf("no Service yet: %s", got)
	}
	for range 20 { // a link just made loses packets for up to a second
		if w.ids(false)[local(c)] != 0 {
			break
		}
		ask(c)
	}
	if w.ids(false)[local(c)] == 0 {
		t.Fatal("the kernel has no such flow, so the test shows nothing")
	}
	w.set(2)
	if got := ask(c); got != "10.244.0.2" {
		t.Errorf("the first endpoint is there: %s", got)
	}
}

// TestFlows_deletedWithoutAgent: a Service is deleted while no agent runs. The next
// one finds its frontends in the kernel, and forgets their flows.
func TestFlows_deletedWithoutAgent(t *testing.T) {
	for _, to := range []string{"10.96.0.10:53", "[fd00:96::10]:53", "192.0.2.1:30053", "[fd00:2::1]:30053"} {
		t.Run(to, func(t *testing.T) {
			w := newWorld(t)
			w.set(2)
			v6 := netip.MustParseAddrPort(to).Addr().Is6()
			c := w.dial(to)
			for range 20 { // a link just made loses packets for up to a second
				if ask(c) != "nothing" {
					break
				}
			}
			if w.ids(v6)[local(c)] == 0 {
				t.Fatal("no flow, so the test shows nothing")
			}
			w.restart()
			w.set(2, 3)
			if w.ids(v6)[local(c)] == 0 {
				t.Error("a restart took a good flow")
			}
			w.restart()
			w.builder.DeleteService(cluster.Key{Namespace: "default", Name: "dns"})
			w.apply()
			if w.ids(v6)[local(c)] != 0 {
				t.Error("the Service was deleted while no agent ran: its flow is there")
			}
		})
	}
}

// TestFlows_oneFamily: while IPv6 cannot be applied, IPv4's stale flows are forgotten, and
// then what was its frontends; IPv6's as soon as it can.
func TestFlows_oneFamily(t *testing.T) {
	w := newWorld(t)
	w.set(2)
	to := map[bool]*net.UDPConn{false: w.dial("10.96.0.10:53"), true: w.dial("[fd00:96::10]:53")}
	there := func(v6 bool) bool { return w.ids(v6)[local(to[v6])] != 0 }
	for v6, c := range to {
		for range 20 { // a link just made loses packets for up to a second
			if ask(c) != "nothing" {
				break
			}
		}
		if !there(v6) {
			t.Fatal("no flow, so the test shows nothing")
		}
	}
	w.restart()
	release := holdIPv6(t)
	w.endpoints(3)
	if err := w.bring(); err == nil {
		t.Fatal("IPv6 is applied, so the test shows nothing")
	}
	if err := w.flows.look(brought{w.table, w.has()}); err != nil || there(false) || !there(true) {
		t.Errorf("IPv6 cannot be applied: flow of IPv4 %v, want none; of IPv6 %v, want one; %v", there(false), there(true), err)
	}
	w.builder.DeleteService(cluster.Key{Namespace: "default", Name: "dns"})
	if err := w.bring(); err == nil {
		t.Fatal("IPv6 is applied, so the test shows nothing")
	}
	if err := w.flows.look(brought{w.table, w.has()}); err != nil {
		t.Error(err)
	}
	for to, want := range map[string]bool{"10.96.0.10:53": false, "192.0.2.1:30053": false, "[fd00:96::10]:53": true} {
		to := netip.MustParseAddrPort(to)
		other := netip.AddrPortFrom(to.Addr(), 1)
		if _, known := w.flows.index.Stale(to, other, func(netip.Addr) bool { return true }); known != want {
			t.Errorf("IPv6 cannot be applied: %s, which is gone, is known %v, want %v", to, known, want)
		}
	}
	release()
	w.apply()
	if there(true) {
		t.Error("IPv6 is applied, its stale flow is there")
	}
}

// restart forgets what an agent knows and the kernel does not.
func (w *world) restart() {
	w.t.Helper()
	w.begin()
	w.table = &proxy.Table{}
	w.last = &cluster.Snapshot{}
}

// TestFlows_newerTable: a flow that a newer Table than the scan's has made is not
// touched.
func TestFlows_newerTable(t *testing.T) {
	w := newWorld(t)
	w.set(2)
	c := w.dial("10.96.0.10:53")
	for range 20 { // a link just made loses packets for up to a second
		if ask(c) == "10.244.0.2" {
			break
		}
	}
	old := w.table
	w.set(2, 3)
	w.flows = newFlows(slog.New(slog.DiscardHandler), w.metrics) // a scan that begins with a Table without both
	without := cluster.NewBuilder()
	without.SetService(w.last.Services.Get(cluster.Key{Namespace: "default", Name: "dns"}))
	w.flows.index.Update(proxy.CompileAll(without.Publish(), proxy.Config{Node: "n1"}))
	w.flows.coming.Store(w.table)
	before := w.ids(false)[local(c)]
	w.flows.due = [2]bool{true, true}
	if err := w.flows.reconcile(brought{old, w.has()}); err != nil {
		t.Fatal(err)
	}
	if now := w.ids(false)[local(c)]; now != before || before == 0 {
		t.Errorf("flow %d, was %d", now, before)
	}
}
