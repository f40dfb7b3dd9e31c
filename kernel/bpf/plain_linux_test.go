package bpf

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

// others are a pod of the same node, of the peer routed directly, and of the one
// behind VXLAN.
func (w *world) others() []pod {
	return []pod{w.nodes[0].pods[1], w.nodes[1].pods[0], w.nodes[2].pods[0]}
}

func option(t testing.TB, c syscall.Conn, level, name, value int) {
	t.Helper()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }))
	must(t, err)
}

// Datagrams of several fragments go there and back by the normal path.
func TestNormal_fragments(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, to := range w.others() {
		serve(t, to.ns)
		for _, v6 := range families {
			n1.grows(t, "pass_fragment", func() {
				talkTo(t, "fragments", n1.pods[0].ns, netip.AddrPortFrom(to.addr(v6), 7777), "udp", payload[:9000])
			})
		}
	}
}

// ICMP and its errors: echo, a closed port, a protocol that no one speaks.
func TestNormal_icmp(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, to := range w.others() {
		for _, v6 := range families {
			nettest.Do(t, n1.pods[0].ns, func() {
				n1.grows(t, "pass_protocol", func() { run(t, "ping -q -c 1 -W 2 %s", to.addr(v6)) })
				for _, network := range []string{"tcp", "udp"} {
					err := once(network, netip.AddrPortFrom(to.addr(v6), 9), payload[:100])
					if !errors.Is(err, unix.ECONNREFUSED) {
						t.Errorf("%s to a closed port of %s: %v", network, to.addr(v6), err)
					}
				}
			})
		}
	}
}

// Other protocols (here one of ESP's number, which conntrack would not find)
// arrive by the normal path.
func TestNormal_protocol(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, to := range w.others() {
		for name, v6 := range families {
			network := map[bool]string{false: "ip4:253", true: "ip6:253"}[v6]
			var l net.PacketConn
			nettest.Do(t, to.ns, func() {
				var err error
				l, err = net.ListenPacket(network, to.addr(v6).String())
				must(t, err)
			})
			n1.grows(t, "pass_protocol", func() {
				nettest.Do(t, n1.pods[0].ns, func() {
					c, err := net.Dial(network, to.addr(v6).String())
					must(t, err)
					defer c.Close()
					_, err = c.Write([]byte("neither TCP nor UDP"))
					must(t, err)
				})
			})
			_ = l.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, _, err := l.ReadFrom(make([]byte, 100)); err != nil {
				t.Errorf("%s to %s: %v", name, to.addr(v6), err)
			}
			_ = l.Close()
		}
	}
}

// IPv4 options and IPv6 extension headers.
func TestNormal_headers(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, to := range w.others() {
		serve(t, to.ns)
		for _, v6 := range families {
			reason, level, name, value := "pass_options", unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x01" // no-operation
			if v6 {
				reason, level, name, value = "pass_protocol", unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00" // padding
			}
			n1.grows(t, reason, func() {
				nettest.Do(t, n1.pods[0].ns, func() {
					c, err := dial("udp", netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7777))
					must(t, err)
					defer c.Close()
					raw, err := c.(syscall.Conn).SyscallConn()
					must(t, err)
					must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), level, name, value) }))
					must(t, err)
					must(t, echo(c, payload[:100]))
				})
			})
		}
	}
}

// The TTL at the receiver is what it is by the normal path, and a packet whose
// TTL ends on the way is answered by the node.
func TestNormal_ttl(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	on := n1.last
	for _, to := range w.others() {
		for name, v6 := range families {
			received := map[string]int{}
			for _, path := range []string{"fast", "normal"} {
				for _, m := range w.nodes {
					if path == "normal" {
						nettest.Do(t, m.ns, func() { m.applyFast(t, nothing()) })
					} else {
						w.apply(t, m)
					}
				}
				received[path] = w.ttlAt(t, to, v6, 20)
			}
			if received["fast"] != received["normal"] || received["fast"] == 20 {
				t.Errorf("%s: TTL %v at the receiver", name, received)
			}
		}
	}
	nettest.Do(t, n1.ns, func() { n1.applyFast(t, on) })
	for _, to := range w.others() {
		for _, v6 := range families {
			n1.grows(t, "pass_ttl", func() { w.expires(t, to, v6) })
		}
	}
}

// ttlAt sends a datagram with a TTL and gives what the receiver gets it with.
func (w *world) ttlAt(t testing.TB, to pod, v6 bool, ttl int) (got int) {
	t.Helper()
	var l *net.UDPConn
	nettest.Do(t, to.ns, func() {
		var err error
		l, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.addr(v6), 7000)))
		must(t, err)
	})
	defer l.Close()
	level, set, receive := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVTTL
	if v6 {
		level, set, receive = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVHOPLIMIT
	}
	option(t, l, level, receive, 1)
	nettest.Do(t, w.nodes[0].pods[0].ns, func() {
		c, err := dial("udp", netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7000))
		must(t, err)
		defer c.Close()
		option(t, c.(*net.UDPConn), level, set, ttl)
		_, err = c.Write([]byte("ttl"))
		must(t, err)
	})
	oob := make([]byte, 100)
	_ = l.SetReadDeadline(time.Now().Add(2 * time.Second))
	_, n, _, _, err := l.ReadMsgUDP(make([]byte, 100), oob)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("control messages %v: %v", messages, err)
	}
	return int(messages[0].Data[0])
}

// expires sends a datagram of TTL 1 and waits for the error that the node
// answers with.
func (w *world) expires(t testing.TB, to pod, v6 bool) {
	t.Helper()
	nettest.Do(t, w.nodes[0].pods[0].ns, func() {
		c, err := dial("udp", netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7000))
		must(t, err)
		defer c.Close()
		level, set, errs := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_RECVERR
		if v6 {
			level, set, errs = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_RECVERR
		}
		option(t, c.(*net.UDPConn), level, set, 1)
		option(t, c.(*net.UDPConn), level, errs, 1)
		_, err = c.Write([]byte("ttl"))
		must(t, err)
		if _, err = c.Read(make([]byte, 10)); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("TTL 1 to %s: %v, want the time exceeded", to.addr(v6), err)
		}
	})
}

// The underlay's MTU has become smaller than what the pods were made with: a
// packet too long for the way behind is answered with its MTU, and TCP goes on with
// smaller ones.
func TestNormal_mtu(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, dev := range []string{"to-n1", "to-n2", "to-n3", "br0", "br1"} {
		run(t, "ip link set %s mtu 1350", dev)
	}
	for _, m := range w.nodes {
		nettest.Do(t, m.ns, func() { run(t, "ip link set eth0 mtu 1350") })
		w.apply(t, m)
	}
	for _, to := range w.others()[1:] {
		serve(t, to.ns)
		for _, v6 := range families {
			n1.grows(t, "pass_size", func() { talkTo(t, "mtu", n1.pods[0].ns, netip.AddrPortFrom(to.addr(v6), 7777), "tcp", payload) })
			w.tooLong(t, to, v6)
		}
	}
}

// tooLong sends a datagram, not to be fragmented, until the pod's kernel has
// learned that it is too long.
func (w *world) tooLong(t *testing.T, to pod, v6 bool) {
	t.Helper()
	nettest.Do(t, w.nodes[0].pods[0].ns, func() {
		run(t, "ip route flush cache")
		run(t, "ip -6 route flush cache")
		c, err := dial("udp", netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7000))
		must(t, err)
		defer c.Close()
		level, name := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER
		if v6 {
			level, name = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER
		}
		option(t, c.(*net.UDPConn), level, name, unix.IP_PMTUDISC_DO)
		for range 20 {
			if _, err = c.Write(payload[:1390]); err != nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !errors.Is(err, unix.EMSGSIZE) {
			t.Errorf("1,390 bytes to %s: %v, want the error of a message too long", to.addr(v6), err)
		}
	})
}

// A pod with a smaller MTU than a packet that comes for it is answered for by
// its node too.
func TestNormal_mtuOfPod(t *testing.T) {
	w := newWorld(t, "")
	server := w.nodes[1]
	to := &server.pods[0]
	to.MTU = 1300
	nettest.Do(t, to.ns, func() { run(t, "ip link set eth0 mtu 1300") })
	w.apply(t, server)
	serve(t, to.ns)
	for _, v6 := range families {
		server.grows(t, "pass_size", func() { w.tooLong(t, *to, v6) })
		talkTo(t, "mtu", w.nodes[0].pods[0].ns, netip.AddrPortFrom(to.addr(v6), 7777), "tcp", payload)
	}
}

// Without checksum offload every packet carries its sum, and the receiver
// compares: it is right after the TTL has changed.
func TestChecksums(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for _, m := range w.nodes {
		nettest.Do(t, m.ns, func() { noOffload(t, "eth0"); noOffload(t, "plpod5") })
		for _, p := range m.pods {
			nettest.Do(t, p.ns, func() { noOffload(t, "eth0") })
		}
	}
	before := w.forwarded(t)
	for _, to := range w.others() {
		serve(t, to.ns)
		for _, v6 := range families {
			talk(t, "no offload", n1.pods[0].ns, to.addr(v6))
		}
	}
	if now := w.forwarded(t); now != before {
		t.Errorf("%d packets took the normal path", now-before)
	}
	for _, m := range w.nodes {
		for _, p := range m.pods {
			nettest.Do(t, p.ns, func() {
				for _, line := range strings.Split(run(t, "nstat -asz TcpInCsumErrors UdpInCsumErrors Udp6InCsumErrors IpInHdrErrors"), "\n") {
					if f := strings.Fields(line); len(f) == 3 && f[1] != "0" {
						t.Errorf("%s: %s", p.Link, line)
					}
				}
			})
		}
	}
}
