package bpf

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// A pod that opted out: all that it sends and gets takes the normal path of its
// node, while the other pods' traffic takes the shortcut.
func TestNormal_optOut(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	n1.off["plpod5"] = fastpath.OptOut
	w.apply(t, n1)
	if n1.last.Normal["plpod5"] != fastpath.OptOut || n1.last.Devices["plpod5"] != "" {
		t.Errorf("%+v", n1.last)
	}
	w.normalOnly(t, n1, n1.pods[0])
	delete(n1.off, "plpod5")
	w.apply(t, n1)
	n1.grows(t, "shortcut_local", func() { talk(t, "opted in again", n1.pods[0].ns, n1.pods[1].addr(false)) })
}

// normalOnly demands that all traffic of a node's pod goes through netfilter
// there.
func (w *world) normalOnly(t *testing.T, m *machine, p pod) {
	t.Helper()
	serve(t, p.ns)
	for _, to := range w.others() {
		serve(t, to.ns)
		for _, v6 := range families {
			for _, way := range []struct{ from, to pod }{{p, to}, {to, p}} {
				before := m.forwarded(t)
				talk(t, "normal path", way.from.ns, way.to.addr(v6))
				if now := m.forwarded(t); now < before+10 {
					t.Errorf("%s to %s: %d packets took the normal path, want all", way.from.addr(v6), way.to.addr(v6), now-before)
				}
			}
		}
	}
	if m.count(t, "pass_pod") == 0 {
		t.Error("pass_pod is 0")
	}
}

// A bandwidth limit as the bandwidth plugin makes it: a tbf on the host's end
// for what the pod gets, and a classifier at its ingress that sends to an ifb for what it sends.
func TestNormal_bandwidth(t *testing.T) {
	for what, commands := range map[string][]string{
		"ingress": {"tc qdisc add dev plpod5 root tbf rate 800mbit burst 256kb latency 25ms"},
		"egress": {
			"ip link add ifb5 type ifb", "ip link set ifb5 up", "tc qdisc add dev ifb5 root tbf rate 800mbit burst 256kb latency 25ms",
			"tc qdisc add dev plpod5 ingress", "tc filter add dev plpod5 parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb5",
		},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t, "")
			n1 := w.nodes[0]
			nettest.Do(t, n1.ns, func() {
				for _, c := range commands {
					run(t, "%s", c)
				}
			})
			w.apply(t, n1)
			if n1.last.Normal["plpod5"] != fastpath.Shaped {
				t.Fatalf("%+v", n1.last)
			}
			w.normalOnly(t, n1, n1.pods[0])
			nettest.Do(t, n1.ns, func() {
				dev := map[string]string{"ingress": "plpod5", "egress": "ifb5"}[what]
				if f := strings.Fields(run(t, "tc -s qdisc show dev %s root", dev)); packets(f) < 1000 {
					t.Errorf("the limit saw %d packets: %v", packets(f), f)
				}
			})
		})
	}
}

// packets reads "Sent B bytes N pkt".
func packets(f []string) int {
	for i := range f {
		if f[i] == "pkt" {
			n, _ := strconv.Atoi(f[i-1])
			return n
		}
	}
	return 0
}

// A classifier of someone else's at the uplink sees all that it saw before.
func TestNormal_filteredUplink(t *testing.T) {
	w := newWorld(t, "")
	n1, n2 := w.nodes[0], w.nodes[1]
	nettest.Do(t, n1.ns, func() {
		run(t, "tc qdisc add dev eth0 clsact")
		run(t, "ip link add sink type veth peer name drain")
		run(t, "ip link set sink up")
		run(t, "tc filter add dev eth0 ingress protocol ip u32 match ip src 10.244.2.0/24 action mirred egress redirect dev sink")
	})
	w.apply(t, n1)
	serve(t, n1.pods[0].ns)
	nettest.Do(t, n2.pods[0].ns, func() {
		if err := once("udp", netip.AddrPortFrom(n1.pods[0].addr(false), 7777), payload[:10]); err == nil {
			t.Error("the packets that the classifier takes away have arrived")
		}
	})
	talk(t, "the other family", n2.pods[0].ns, n1.pods[0].addr(true))
}

// Host network: nodes reach pods of every node, and pods nodes.
func TestHostNetwork(t *testing.T) {
	w := newWorld(t, "")
	for i, m := range w.nodes {
		serve(t, m.ns)
		serve(t, m.pods[0].ns)
		for _, other := range w.nodes {
			for _, v6 := range families {
				talk(t, "node "+other.name+" to pod", other.ns, m.pods[0].addr(v6))
				// Over UDP a node answers with the address that its route to the pod has.
				talkTo(t, "pod of "+other.name+" to node", other.pods[0].ns, netip.AddrPortFrom(w.api[i].Address(v6), 7777), "tcp", payload)
			}
		}
	}
	if w.nodes[0].count(t, "pass_source") == 0 {
		t.Error("pass_source is 0: packets of node n2 took the fast path")
	}
}

// Multicast and broadcast stay on the link.
func TestNormal_multicast(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for group, dev := range map[string]string{"224.0.0.251": "plpod5", "ff02::fb": "plpod5"} {
		var l *net.UDPConn
		nettest.Do(t, n1.ns, func() {
			ifi, err := net.InterfaceByName(dev)
			must(t, err)
			l, err = net.ListenMulticastUDP("udp", ifi, &net.UDPAddr{IP: net.ParseIP(group), Port: 5353})
			must(t, err)
		})
		n1.grows(t, "pass_other", func() {
			nettest.Do(t, n1.pods[0].ns, func() {
				to := group
				if strings.Contains(group, ":") {
					to += "%eth0"
				} else {
					run(t, "ip route replace 224.0.0.0/4 dev eth0")
				}
				c, err := net.Dial("udp", net.JoinHostPort(to, "5353"))
				must(t, err)
				defer c.Close()
				_, err = c.Write([]byte("hello"))
				must(t, err)
			})
		})
		_ = l.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, _, err := l.ReadFromUDP(make([]byte, 100)); err != nil {
			t.Errorf("%s: %v", group, err)
		}
		_ = l.Close()
	}
}

// A pod that sends with another pod's address does not get past the normal
// path's checks.
func TestNormal_source(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	serve(t, w.nodes[1].pods[0].ns)
	nettest.Do(t, n1.pods[0].ns, func() {
		run(t, "ip addr add %s/32 dev eth0", n1.pods[1].addr(false))
		n1.grows(t, "pass_source", func() {
			c, err := dial("udp", netip.AddrPortFrom(n1.pods[1].addr(false), 0), netip.AddrPortFrom(w.nodes[1].pods[0].addr(false), 7777))
			must(t, err)
			defer c.Close()
			_, err = c.Write([]byte("not mine"))
			must(t, err)
		})
	})
}

// One node reaches the other directly, and is answered through VXLAN, as when the
// other's probe of the direct way has not come back yet: a flow takes the fast path both
// ways all the same, and a firewall that drops what is invalid sees nothing of it.
func TestAsymmetric(t *testing.T) {
	w := newWorld(t, "")
	n1, n2 := w.nodes[0], w.nodes[1]
	n2.probed = &overlay.Probed{}
	w.apply(t, n2)
	serve(t, n1.pods[0].ns)
	serve(t, n2.pods[0].ns)
	for _, m := range w.nodes[:2] {
		nettest.Do(t, m.ns, func() { nft(t, "add rule inet probe forward ct state invalid counter drop") })
	}
	for _, v6 := range families {
		before := w.forwarded(t)
		n1.grows(t, "shortcut_direct", func() { talk(t, "out directly", n1.pods[1].ns, n2.pods[0].addr(v6)) })
		n2.grows(t, "shortcut_encap", func() { talk(t, "out by VXLAN", n2.pods[1].ns, n1.pods[0].addr(v6)) })
		if n := w.forwarded(t) - before; n != 0 {
			t.Errorf("%d packets took the normal path", n)
		}
	}
}

// A capture on the host's end of a pod's pair sees what the pod sends. What it
// gets goes past; the opt-out brings it back.
func TestCapture(t *testing.T) {
	w := newWorld(t, "")
	n1, to := w.nodes[0], w.nodes[1].pods[0]
	serve(t, to.ns)
	if sent, got := w.capture(t, n1, to); sent == 0 || got != 0 {
		t.Errorf("on the fast path a capture sees %d packets sent and %d received", sent, got)
	}
	n1.off["plpod5"] = fastpath.OptOut
	w.apply(t, n1)
	if sent, got := w.capture(t, n1, to); sent == 0 || got == 0 {
		t.Errorf("after the opt-out a capture sees %d packets sent and %d received", sent, got)
	}
}

// capture counts the UDP packets that a packet socket on plpod5 sees.
func (w *world) capture(t *testing.T, m *machine, to pod) (sent, got int) {
	t.Helper()
	var fd int
	nettest.Do(t, m.ns, func() {
		ifi, err := net.InterfaceByName("plpod5")
		must(t, err)
		protocol := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00)
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(protocol))
		must(t, err)
		must(t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifi.Index}))
	})
	defer unix.Close(fd)
	talkTo(t, "captured", m.pods[0].ns, netip.AddrPortFrom(to.addr(false), 7777), "udp", payload[:100])
	b := make([]byte, 2000)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			return sent, got
		}
		if n < 24 || b[12] != 8 || b[13] != 0 || b[23] != unix.IPPROTO_UDP {
			continue
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			got++
		} else {
			sent++
		}
	}
}
