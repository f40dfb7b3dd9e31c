package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// The program puts around a packet what the VTEP would, but for the checksum of UDP, which is
// none, the identification and the source port.
func TestVXLAN_wire(t *testing.T) {
	w := newWorld(t, "")
	n1, to := w.nodes[0], w.nodes[2].pods[0]
	serve(t, to.ns)
	talk(t, "the neighbour is not known before", n1.pods[0].ns, to.addr(false))
	wire := w.tap(t, "to-n1")
	for name, v6 := range families {
		for _, tos := range []int{0, 1, 2, 3, 0x2e << 2} {
			var sent [2][]byte
			for i, count := range []string{"shortcut_encap", "shortcut_vxlan"} {
				nettest.Do(t, n1.ns, func() { m := n1.last; n1.applyFast(t, encapsulatedBy(m, i == 1)) })
				n1.grows(t, count, func() {
					text := fmt.Sprintf("%s %d", name, tos)
					nettest.Do(t, n1.pods[0].ns, func() { must(t, datagram(netip.AddrPortFrom(to.addr(v6), 7777), 20000, tos, text)) })
					sent[i] = wire.vxlan(t, w.api[0].Addresses[0], text)
				})
			}
			program, vtep := sent[0], sent[1]
			if sum := binary.BigEndian.Uint16(program[40:]); sum != 0 {
				t.Errorf("%s, TOS %d: checksum %x, want none", name, tos, sum)
			}
			if port := binary.BigEndian.Uint16(program[34:]); port < 49152 {
				t.Errorf("%s: source port %d is not of the dynamic ones", name, port)
			}
			if !validHeader(program[14:34]) {
				t.Errorf("%s: the outer header's checksum is wrong: % x", name, program[14:34])
			}
			for _, at := range [][2]int{{18, 20}, {24, 26}, {34, 36}, {40, 42}} { // identification, sum, source port, sum
				clear(program[at[0]:at[1]])
				clear(vtep[at[0]:at[1]])
			}
			clearRandom(program[64:], v6)
			clearRandom(vtep[64:], v6)
			if !bytes.Equal(program, vtep) {
				t.Errorf("%s, TOS %d:\nprogram % x\nVTEP    % x", name, tos, program, vtep)
			}
		}
	}
}

// encapsulatedBy gives a State in which the program encapsulates, or the VTEP.
func encapsulatedBy(s fastpath.State, vtep bool) fastpath.State {
	peers := map[netip.Prefix]fastpath.Peer{}
	for cidr, p := range s.Peers {
		if vtep {
			p.Outer = fastpath.Outer{}
		}
		peers[cidr] = p
	}
	s.Peers = peers
	return s
}

// clearRandom clears of an inner header what differs with each packet: IPv4's identification and with it the sum, IPv6's
// flow label.
func clearRandom(ip []byte, v6 bool) {
	if v6 {
		ip[1] &= 0xf0
		clear(ip[2:4])
		return
	}
	clear(ip[4:6])
	clear(ip[10:12])
}

func validHeader(ip []byte) bool {
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	return sum>>16+sum&0xffff == 0xffff
}

// datagram sends text from a port, with a TOS or traffic class.
func datagram(to netip.AddrPort, port, tos int, text string) error {
	d := net.Dialer{LocalAddr: &net.UDPAddr{Port: port}}
	c, err := d.Dial("udp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	level, option := unix.IPPROTO_IP, unix.IP_TOS
	if to.Addr().Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, tos) }); e != nil || err != nil {
		return fmt.Errorf("TOS: %w, %w", e, err)
	}
	_, err = c.Write([]byte(text))
	return err
}

// A wire is a capture of a device of the router.
type wire struct{ fd int }

func (w *world) tap(t testing.TB, dev string) wire {
	t.Helper()
	var c wire
	nettest.Do(t, w.router, func() {
		link, err := net.InterfaceByName(dev)
		must(t, err)
		all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all))
		must(t, err)
		must(t, unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index}))
		tv := unix.NsecToTimeval(int64(3 * time.Second))
		must(t, unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv))
	})
	t.Cleanup(func() { _ = unix.Close(c.fd) })
	return c
}

// vxlan gives the next frame with a datagram in VXLAN of a node whose payload ends in text.
func (c wire) vxlan(t testing.TB, node netip.Addr, text string) []byte {
	t.Helper()
	from := node.As4()
	b := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(c.fd, b, 0)
		if err != nil {
			t.Fatalf("no VXLAN with %q: %v", text, err)
		}
		if f := b[:n]; n > 64 && f[23] == unix.IPPROTO_UDP && bytes.Equal(f[26:30], from[:]) && binary.BigEndian.Uint16(f[36:]) == overlay.DefaultPort && (f[64+9] == unix.IPPROTO_UDP || f[64+6] == unix.IPPROTO_UDP) && bytes.HasSuffix(f, []byte(text)) {
			return bytes.Clone(f)
		}
	}
}

// crafted is a datagram in VXLAN from the pod at n3 to a pod of n1, as n3's program would send it.
type crafted struct {
	flags, vni         uint32
	inner              []byte // Ethernet
	src, dst           netip.Addr
	protocol           uint16
	sum                bool // with UDP's checksum
	tos                int  // of the outer header
	port               int  // destination
	ttl                byte
	length, fragmented bool
	to                 netip.Addr // of n1; by itself the one that VXLAN is for
}

// payload is VXLAN's header and what is in it. Datagrams over IPv4 need no checksum.
func (c crafted) payload(text string) []byte {
	b := binary.BigEndian.AppendUint32(nil, c.flags)
	b = binary.BigEndian.AppendUint32(b, c.vni<<8)
	b = append(b, c.inner...)
	b = binary.BigEndian.AppendUint16(b, c.protocol)
	src, dst := c.src.As4(), c.dst.As4()
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0, 0, c.ttl, unix.IPPROTO_UDP, 0, 0}
	ip = append(append(ip, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	if c.fragmented {
		ip[6] = 0x20
	}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum&0xffff))
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, 20000)
	b = binary.BigEndian.AppendUint16(b, 7777)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
	b = append(append(b, 0, 0), text...)
	if c.length {
		b = b[:len(b)-len(text)-8] // no UDP header
	}
	return b
}

// send sends from n3 to n1.
func (c crafted) send(text string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, c.tos); err != nil {
		return err
	}
	if !c.sum {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil {
			return err
		}
	}
	return unix.Sendto(fd, c.payload(text), 0, &unix.SockaddrInet4{Port: c.port, Addr: c.to.As4()})
}

// The program takes out of VXLAN what a node's program has put into it for that node's pods, and nothing else: the
// rest is the VTEP's, behind the rules that guard it.
func TestVXLAN_from(t *testing.T) {
	w := newWorld(t, "")
	n1, n2, n3 := w.nodes[0], w.nodes[1], w.nodes[2]
	peer := n1.last.Peers[w.api[2].PodCIDRs[0]]
	good := crafted{
		flags: 1 << 27, vni: overlay.DefaultVNI, inner: append(peer.Src[:], peer.Dst[:]...), protocol: unix.ETH_P_IP,
		src: n3.pods[0].addr(false), dst: n1.pods[0].addr(false), port: overlay.DefaultPort, ttl: 64, to: w.api[0].Addresses[0],
	}
	second := netip.MustParseAddr("10.99.0.1")
	nettest.Do(t, n1.ns, func() { run(t, "ip addr add %s dev lo", second) })
	run(t, "ip route add %s via %s", second, good.to)
	for name, test := range map[string]struct {
		change  func(*crafted)
		program bool // takes it out
		arrives bool // at the pod, whoever took it out
	}{
		"as sent":                 {func(c *crafted) {}, true, true},
		"congestion possible":     {func(c *crafted) { c.tos = 2 }, true, true},
		"congestion":              {func(c *crafted) { c.tos = 3 }, false, false}, // the inner header cannot say so: the VTEP drops it
		"with a checksum":         {func(c *crafted) { c.sum = true }, false, true},
		"another VNI":             {func(c *crafted) { c.vni++ }, false, false},
		"another port":            {func(c *crafted) { c.port++ }, false, false},
		"flags of GBP":            {func(c *crafted) { c.flags |= 1 << 31 }, false, false},
		"no VNI":                  {func(c *crafted) { c.flags = 0 }, false, false},
		"another node's pod":      {func(c *crafted) { c.src = n2.pods[0].addr(false) }, false, true}, // there is no guard in this world
		"to another address":      {func(c *crafted) { c.to = second }, false, true},                  // likewise
		"no pod's source":         {func(c *crafted) { c.src = netip.MustParseAddr("192.168.9.3") }, false, true},
		"to no pod":               {func(c *crafted) { c.dst = netip.MustParseAddr("10.244.1.77") }, false, false},
		"another MAC":             {func(c *crafted) { c.inner = append([]byte{2, 2, 2, 2, 2, 2}, peer.Dst[:]...) }, false, false},
		"not IP":                  {func(c *crafted) { c.protocol = unix.ETH_P_ARP }, false, false},
		"the last hop":            {func(c *crafted) { c.ttl = 1 }, false, false},
		"a fragment":              {func(c *crafted) { c.fragmented = true }, false, false},
		"cut off":                 {func(c *crafted) { c.length = true }, false, false},
		"of IPv6, and it is none": {func(c *crafted) { c.protocol = unix.ETH_P_IPV6 }, false, false},
	} {
		c := good
		test.change(&c)
		var l *net.UDPConn
		nettest.Do(t, n1.pods[0].ns, func() {
			var err error
			l, err = net.ListenUDP("udp4", &net.UDPAddr{Port: 7777})
			must(t, err)
		})
		before := n1.count(t, "shortcut_decap")
		nettest.Do(t, n3.ns, func() { must(t, c.send(name)) })
		arrives := received(t, l, name, test.arrives)
		_ = l.Close()
		if program := n1.count(t, "shortcut_decap") != before; program != test.program || arrives != test.arrives {
			t.Errorf("%s: program %v, arrives %v; want %v, %v", name, program, arrives, test.program, test.arrives)
		}
	}
}

// received tells whether a datagram with text comes.
func received(t *testing.T, l *net.UDPConn, text string, want bool) bool {
	t.Helper()
	wait := 200 * time.Millisecond
	if want {
		wait = 3 * time.Second
	}
	must(t, l.SetReadDeadline(time.Now().Add(wait)))
	b := make([]byte, 100)
	n, err := l.Read(b)
	if err != nil && !os.IsTimeout(err) {
		t.Fatal(err)
	}
	return string(b[:n]) == text
}

// What the program has taken out of VXLAN keeps the kernel's mark of a tunnel. A pod that forwards it, to a
// container of its own, to a device that cuts segments in software, or into a tunnel, must not be troubled
// by that.
func TestVXLAN_forwardingPod(t *testing.T) {
	for name, link := range map[string]string{
		"a pair":        "ip link add inside type veth peer name eth0 netns NS",
		"no offload":    "ip link add inside type veth peer name eth0 netns NS; ethtool -K inside tso off gso off tx off sg off",
		"another VXLAN": "ip link add below type veth peer name below netns NS; ip addr add 10.8.8.1/24 dev below; ip link set below up; ip link add inside type vxlan id 7 dstport 4789 local 10.8.8.1 remote 10.8.8.2",
	} {
		w := newWorld(t, "")
		n1, n3 := w.nodes[0], w.nodes[2]
		nested := nettest.Make(t)
		path := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), nested)
		nettest.Do(t, n1.pods[0].ns, func() {
			nettest.Run(t, "sh", "-ec", strings.ReplaceAll(link, "NS", path)+"; ip addr add 10.9.9.1/24 dev inside; ip link set inside up; sysctl -qw net.ipv4.ip_forward=1")
			nft(t, `table ip inside {
				chain in { type nat hook prerouting priority -100; tcp dport 7777 dnat to 10.9.9.2; }
			}`)
		})
		nettest.Do(t, nested, func() {
			if name == "another VXLAN" {
				run(t, "ip addr add 10.8.8.2/24 dev below")
				run(t, "ip link set below up")
				run(t, "ip link add eth0 type vxlan id 7 dstport 4789 local 10.8.8.2 remote 10.8.8.1")
			}
			run(t, "ip addr add 10.9.9.2/24 dev eth0")
			run(t, "ip link set eth0 up")
			run(t, "ip route add default via 10.9.9.1")
		})
		serve(t, nested)
		n1.grows(t, "shortcut_decap", func() {
			talkTo(t, name, n3.pods[0].ns, netip.AddrPortFrom(n1.pods[0].addr(false), 7777), "tcp", payload)
		})
	}
}

// What is not in VXLAN is not taken in from a peer whose packets come in it: at the uplink anybody may send
// it, and the rules that the normal path has for that see it.
func TestVXLAN_bare(t *testing.T) {
	w := newWorld(t, "")
	n1, n3 := w.nodes[0], w.nodes[2]
	to, from := n1.pods[0], n3.pods[0]
	serve(t, to.ns)
	talk(t, "in VXLAN", from.ns, to.addr(false))
	nettest.Do(t, w.router, func() { run(t, "ip route add %s via %s", w.api[0].PodCIDRs[0], w.api[0].Addresses[0]) })
	nettest.Do(t, n3.ns, func() {
		run(t, "ip addr add %s/32 dev lo", from.addr(false).Next())
		run(t, "ip route replace %s/32 via 192.168.9.254", to.addr(false))
		n1.grows(t, "pass_source", func() {
			before := n1.count(t, "shortcut_in")
			c, err := dial("udp", netip.AddrPortFrom(from.addr(false).Next(), 20000), netip.AddrPortFrom(to.addr(false), 7777))
			must(t, err)
			defer c.Close()
			_, err = c.Write([]byte("bare"))
			must(t, err)
			time.Sleep(200 * time.Millisecond)
			if now := n1.count(t, "shortcut_in"); now != before {
				t.Errorf("shortcut_in grew from %d to %d", before, now)
			}
		})
	})
}
