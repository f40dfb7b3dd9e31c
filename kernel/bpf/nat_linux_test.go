package bpf

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/internal/nettest"
)

var vips = map[bool]netip.Addr{false: netip.MustParseAddr("10.96.0.1"), true: netip.MustParseAddr("fd00:96::1")}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "ip"
	}
	return "ip6"
}

// translate has the node translate from, port 80, to port 7777 of to, as a
// Service does; with masquerade the client's address too.
func (m *machine) translate(t *testing.T, from, to netip.Addr, masquerade bool) {
	t.Helper()
	f := familyOf(from)
	rules := fmt.Sprintf("add rule inet probe nat %s daddr %s meta l4proto { tcp, udp } th dport 80 dnat %s to %s\n", f, from, f, netip.AddrPortFrom(to, 7777))
	if masquerade {
		rules += "add chain inet probe post { type nat hook postrouting priority 100; }\n" +
			fmt.Sprintf("add rule inet probe post ct status dnat %s daddr %s masquerade\n", f, to)
	}
	nettest.Do(t, m.ns, func() { nft(t, rules) })
}

func (m *machine) noTranslation(t *testing.T) {
	t.Helper()
	nettest.Do(t, m.ns, func() {
		nft(t, "flush chain inet probe nat\nadd chain inet probe post { type nat hook postrouting priority 100; }\ndelete chain inet probe post\n")
	})
}

// NAT: replies of a Service's flow pass conntrack on the node that translated
// it, wherever the endpoint is; the endpoint's node takes the shortcut.
func TestNAT_service(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for what, to := range map[string]pod{"same node": n1.pods[1], "direct": w.nodes[1].pods[0], "vxlan": w.nodes[2].pods[0], "hairpin": n1.pods[0]} {
		serve(t, to.ns)
		for _, v6 := range families {
			n1.translate(t, vips[v6], to.addr(v6), what == "hairpin")
			for _, network := range []string{"tcp", "udp"} {
				reason := "pass_nat"
				if what == "hairpin" { // its answers go to the node, not to a pod
					reason = "pass_other"
				}
				n1.grows(t, reason, func() {
					talkTo(t, what, n1.pods[0].ns, netip.AddrPortFrom(vips[v6], 80), network, payload[:1200])
				})
			}
			n1.noTranslation(t)
		}
	}
	if n2 := w.nodes[1]; n2.count(t, "pass_nat") != 0 || n2.count(t, "shortcut_in") == 0 {
		t.Error("the endpoint's node, which translates nothing, did not take the shortcut")
	}
}

// A NodePort: pods of other nodes reach a pod by the translating node's address,
// with their own address and with the node's.
func TestNAT_nodePort(t *testing.T) {
	w := newWorld(t, "")
	n1, server := w.nodes[0], w.nodes[0].pods[0]
	serve(t, server.ns)
	for _, masquerade := range []bool{false, true} {
		for _, v6 := range families {
			address := w.api[0].Address(v6)
			n1.translate(t, address, server.addr(v6), masquerade)
			for _, client := range w.nodes[1:] {
				for _, network := range []string{"tcp", "udp"} {
					talkTo(t, client.name, client.pods[0].ns, netip.AddrPortFrom(address, 80), network, payload[:1200])
				}
			}
			n1.noTranslation(t)
		}
	}
	if n1.count(t, "pass_nat") == 0 {
		t.Error("pass_nat is 0")
	}
}

// A client uses one source port for a Service and, at the same time, for the
// pod behind it: conntrack has to give the second flow another port, or the answers of one would
// be taken for the other's. At the client's node and at the server's.
func TestNAT_samePort(t *testing.T) {
	w := newWorld(t, "")
	n1, n2 := w.nodes[0], w.nodes[1]
	server := n2.pods[0]
	serve(t, server.ns)
	port := uint16(20000)
	for _, v6 := range families {
		n1.translate(t, vips[v6], server.addr(v6), false)
		n2.translate(t, w.api[1].Address(v6), server.addr(v6), false)
		direct := netip.AddrPortFrom(server.addr(v6), 7777)
		for _, of := range []netip.Addr{vips[v6], w.api[1].Address(v6)} {
			service := netip.AddrPortFrom(of, 80)
			for _, network := range []string{"tcp", "udp"} {
				for _, order := range [][]netip.AddrPort{{service, direct}, {direct, service}} {
					port++
					both(t, n1.pods[0].ns, network, netip.AddrPortFrom(n1.pods[0].addr(v6), port), order)
				}
			}
		}
	}
}

// both holds two connections from one port, and has both get their answers.
func both(t *testing.T, ns netns.NsHandle, network string, local netip.AddrPort, order []netip.AddrPort) {
	t.Helper()
	nettest.Do(t, ns, func() {
		var conns []net.Conn
		for _, to := range order {
			c, err := dial(network, local, to)
			if err != nil {
				t.Errorf("%s from %s to %s: %v", network, local, to, err)
				return
			}
			defer c.Close()
			conns = append(conns, c)
			for _, c := range conns {
				if err := echo(c, payload[:1000]); err != nil {
					t.Errorf("%s from %s to %s: %v", network, local, c.RemoteAddr(), err)
				}
			}
		}
	})
}

// A client has sent all it has, and still gets: a Service's connection from its port
// takes neither the port nor what is yet to come.
func TestNAT_halfClosed(t *testing.T) {
	w := newWorld(t, "")
	n1, server := w.nodes[0], w.nodes[1].pods[0]
	ended, finish := serveHalf(t, server.ns)
	for _, v6 := range families {
		n1.translate(t, vips[v6], server.addr(v6), false)
		local := netip.AddrPortFrom(n1.pods[0].addr(v6), 21000)
		nettest.Do(t, n1.pods[0].ns, func() {
			direct, err := dial("tcp", local, netip.AddrPortFrom(server.addr(v6), 7777))
			must(t, err)
			defer direct.Close()
			must(t, echo(direct, payload[:1000]))
			must(t, direct.(*net.TCPConn).CloseWrite())
			<-ended
			service, err := dial("tcp", local, netip.AddrPortFrom(vips[v6], 80))
			must(t, err)
			defer service.Close()
			must(t, echo(service, payload[:1000]))
			finish <- "the rest"
			if rest, err := io.ReadAll(direct); err != nil || string(rest) != "the rest" {
				t.Errorf("%q, %v", rest, err)
			}
			must(t, echo(service, payload[:1000]))
			must(t, service.(*net.TCPConn).CloseWrite())
			<-ended
			finish <- ""
		})
	}
}

// serveHalf answers on port 7777 with what it gets; when a client has ended its half,
// it tells, and ends with what it is told.
func serveHalf(t *testing.T, ns netns.NsHandle) (ended <-chan struct{}, finish chan<- string) {
	t.Helper()
	told, last := make(chan struct{}, 2), make(chan string, 2)
	nettest.Do(t, ns, func() {
		l, err := net.Listen("tcp", ":7777")
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					if _, err := io.Copy(c, c); err != nil { // reset
						return
					}
					told <- struct{}{}
					_, _ = io.WriteString(c, <-last)
				}()
			}
		}()
	})
	return told, last
}

// Conntrack knows a flow that is not translated (from before the fast path was
// on): it takes the shortcut from then on.
func TestNAT_plainFlowIsKnown(t *testing.T) {
	w := newWorld(t, "")
	n1, server := w.nodes[0], w.nodes[1].pods[0]
	serve(t, server.ns)
	on := n1.last
	for _, v6 := range families {
		nettest.Do(t, n1.ns, func() { n1.applyFast(t, nothing()) })
		var c net.Conn
		nettest.Do(t, n1.pods[0].ns, func() {
			var err error
			c, err = dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(server.addr(v6), 7777))
			must(t, err)
			must(t, echo(c, payload))
		})
		nettest.Do(t, n1.ns, func() {
			if out := run(t, "conntrack -L -f ipv%d -p tcp", map[bool]int{false: 4, true: 6}[v6]); !strings.Contains(out, "dport=7777") {
				t.Fatalf("conntrack does not know the flow:\n%s", out)
			}
			n1.applyFast(t, on)
		})
		before := n1.forwarded(t)
		n1.grows(t, "shortcut_direct", func() { must(t, echo(c, payload)) })
		if now := n1.forwarded(t); now != before {
			t.Errorf("%d packets took the normal path", now-before)
		}
		_ = c.Close()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Where a firewall drops what conntrack finds invalid, a connection survives that
// the fast path comes, and goes, by whatever way it goes.
func TestInvalidDropped(t *testing.T) {
	w := newWorld(t, "")
	n1, server := w.nodes[0], w.nodes[1].pods[0]
	serve(t, server.ns)
	on := n1.last
	for _, m := range w.nodes {
		nettest.Do(t, m.ns, func() { nft(t, "add rule inet probe forward ct state invalid counter drop") })
	}
	for _, v6 := range families {
		nettest.Do(t, n1.ns, func() { n1.applyFast(t, nothing()) })
		var c net.Conn
		nettest.Do(t, n1.pods[0].ns, func() {
			var err error
			c, err = dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(server.addr(v6), 7777))
			must(t, err)
			must(t, echo(c, payload))
		})
		off := on
		off.Pods = maps.Clone(on.Pods)
		for a, p := range off.Pods {
			p.Normal = "opt-out"
			off.Pods[a] = p
		}
		for what, goes := range map[string]func(){
			"no state":  func() { n1.applyFast(t, nothing()) },
			"opted out": func() { n1.applyFast(t, off) },
			"removed": func() {
				must(t, Remove(w.dir(n1)))
				n1.fast.Close()
				n1.open(t, w)
			},
		} {
			nettest.Do(t, n1.ns, func() { n1.applyFast(t, on) })
			n1.grows(t, "shortcut_direct", func() {
				for range 5 { // past any window that conntrack knows
					must(t, echo(c, payload))
				}
			})
			nettest.Do(t, n1.ns, goes)
			before := n1.forwarded(t)
			if err := echo(c, payload); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if n1.forwarded(t) == before {
				t.Errorf("%s: no packet took the normal path", what)
			}
		}
		_ = c.Close()
	}
}

// Conntrack has forgotten a connection before the maps no longer have it: an agent
// that is killed in between leaves none that would be found invalid.
func TestForgetFlows_first(t *testing.T) {
	w := newWorld(t, "")
	n1, server := w.nodes[0], w.nodes[1].pods[0]
	serve(t, server.ns)
	on := n1.last
	nettest.Do(t, n1.ns, func() { n1.applyFast(t, nothing()) })
	var c net.Conn
	nettest.Do(t, n1.pods[0].ns, func() {
		var err error
		c, err = dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(server.addr(false), 7777))
		must(t, err)
		must(t, echo(c, payload))
	})
	defer c.Close()
	known := func() bool { return strings.Contains(run(t, "conntrack -L -f ipv4 -p tcp"), "dport=7777") }
	nettest.Do(t, n1.ns, func() {
		n1.applyFast(t, on)
		if !known() {
			t.Fatal("conntrack does not know the connection: the test proves nothing")
		}
		must(t, n1.fast.objects.PlPods.Freeze()) // no write comes to pass
		must(t, n1.fast.objects.PlPeers.Freeze())
		n1.fast.want = nothing()
		if err := n1.fast.update(); err == nil {
			t.Fatal("the maps could be written")
		}
		if known() {
			t.Error("conntrack still knows the connection")
		}
	})
	n1.grows(t, "shortcut_direct", func() { must(t, echo(c, payload)) })
}

// What the programs remember of a connection goes when both sides have ended it, or
// one has reset it, and not before.
func TestOpened(t *testing.T) {
	w := newWorld(t, "")
	n1, n2 := w.nodes[0], w.nodes[1]
	server := n2.pods[0]
	ended, finish := serveHalf(t, server.ns)
	noted := func(want int) {
		t.Helper()
		for _, m := range []*machine{n1, n2} {
			n := -1
			for start := time.Now(); n != want && time.Since(start) < 5*time.Second; time.Sleep(10 * time.Millisecond) {
				n = 0
				var key objectsOpener
				var to objectsOpened
				all := m.fast.objects.PlOpened.Iterate()
				for all.Next(&key, &to) {
					n++
				}
				must(t, all.Err())
			}
			if n != want {
				t.Errorf("%s: %d connections are noted, want %d", m.name, n, want)
			}
		}
	}
	for _, v6 := range families {
		for _, reset := range []bool{false, true} {
			nettest.Do(t, n1.pods[0].ns, func() {
				noted(0)
				c, err := dial("tcp", netip.AddrPort{}, netip.AddrPortFrom(server.addr(v6), 7777))
				must(t, err)
				must(t, echo(c, payload[:1000]))
				noted(1)
				if reset {
					must(t, c.(*net.TCPConn).SetLinger(0))
				} else {
					must(t, c.(*net.TCPConn).CloseWrite())
					<-ended
					noted(1)
					finish <- ""
					noted(0)
				}
				must(t, c.Close())
				noted(0)
			})
		}
	}
}
