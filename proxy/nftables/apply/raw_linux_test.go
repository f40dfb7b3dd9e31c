package apply

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
)

// raw opens a raw socket of a protocol in a place. A received IPv4 packet comes
// without its IP header.
func (w *world) raw(p place, proto int) *net.IPConn {
	w.t.Helper()
	network := fmt.Sprintf("ip4:%d", proto)
	if w.v6 {
		network = fmt.Sprintf("ip6:%d", proto)
	}
	var c *net.IPConn
	var err error
	nettest.Do(w.t, p.ns, func() { c, err = net.ListenIP(network, &net.IPAddr{IP: p.addr.AsSlice()}) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

func send(t *testing.T, c *net.IPConn, to netip.Addr, b []byte) {
	t.Helper()
	if _, err := c.WriteToIP(b, &net.IPAddr{IP: to.AsSlice()}); err != nil {
		t.Fatal(err)
	}
}

// await gives the source and the bytes of the first packet that fits, or false
// after the time limit.
func await(t *testing.T, c *net.IPConn, limit time.Duration, fits func(from netip.Addr, b []byte) bool) (netip.Addr, []byte, bool) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(limit))
	buf := make([]byte, 2000)
	for {
		n, addr, err := c.ReadFromIP(buf)
		if err != nil {
			return netip.Addr{}, nil, false
		}
		from, _ := netip.AddrFromSlice(addr.IP)
		if from = from.Unmap(); fits(from, buf[:n]) {
			return from, buf[:n], true
		}
	}
}

// segment is a TCP segment with the flag ACK and a payload, whose checksum is right.
func segment(from, to netip.AddrPort, seq, ack uint32) []byte {
	b := make([]byte, 20, 24)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, 0x10
	binary.BigEndian.PutUint16(b[14:], 1000)
	b = append(b, "boom"...)
	pseudo := append(append(from.Addr().AsSlice(), to.Addr().AsSlice()...), 0, 6, 0, byte(len(b)))
	binary.BigEndian.PutUint16(b[16:], checksum(append(pseudo, b...)))
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 > 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// TestInvalid sends from an endpoint what connection tracking takes for no part
// of the connection, and is therefore not translated: the client must not see it,
// since it would answer with a reset. Without the rules it does see it.
func TestInvalid(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		w.server(w.r, 8080)
		ap, _ := applier(t)
		s := w.cluster()
		s.service(nil, at(w.r))
		apply(t, ap, s.table(), w.pods())
		out, in := w.raw(w.r, 6), w.raw(w.a, 6)
		c, err := w.dial(w.a, "tcp", netip.AddrPortFrom(w.clusterIP(1), 80))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		client := c.LocalAddr().(*net.TCPAddr).AddrPort()
		client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
		endpoint := netip.AddrPortFrom(w.r.addr, 8080)
		// The client's first acknowledgement tells where both sides are. Data far beyond
		// the window are what connection tracking does not take.
		_, ack, ok := await(t, out, 3*time.Second, func(from netip.Addr, b []byte) bool { return from == w.a.addr && b[13] == 0x10 })
		if !ok {
			t.Fatal("no acknowledgement seen")
		}
		seq, next := binary.BigEndian.Uint32(ack[8:])+1<<28, binary.BigEndian.Uint32(ack[4:])
		leaks := func() bool {
			send(t, out, client.Addr(), segment(endpoint, client, seq, next))
			_, _, seen := await(t, in, 500*time.Millisecond, func(from netip.Addr, b []byte) bool {
				return from == w.r.addr && len(b) >= 24 && string(b[len(b)-4:]) == "boom"
			})
			return seen
		}
		if leaks() {
			t.Error("an invalid packet came through untranslated")
		}
		if server, _, err := question(c); err != nil || server != "r" {
			t.Errorf("the connection after it: %s, %v", server, err)
		}
		nettest.Run(t, "nft", "flush chain "+ap.families[0].applied.Ruleset().Table.String()+" filter-forward")
		nettest.Run(t, "nft", "flush chain "+ap.families[1].applied.Ruleset().Table.String()+" filter-forward")
		if !leaks() {
			t.Error("without the rules it does not come through: this test finds nothing")
		}
	})
}

// chunk is an SCTP packet of one chunk.
func chunk(from, to uint16, tag uint32, typ byte, value []byte) []byte {
	b := make([]byte, 16, 16+len(value))
	binary.BigEndian.PutUint16(b, from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint32(b[4:], tag)
	b[12] = typ
	binary.BigEndian.PutUint16(b[14:], uint16(4+len(value)))
	b = append(b, value...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// initiation is the value of an INIT, and with a cookie of an INIT-ACK (RFC 9260,
// 3.3.2 and 3.3.3).
func initiation(tag uint32, cookie bool) []byte {
	b := binary.BigEndian.AppendUint32(nil, tag)
	b = binary.BigEndian.AppendUint32(b, 65536) // receiver window
	b = append(b, 0, 1, 0, 1)                   // streams out and in
	b = binary.BigEndian.AppendUint32(b, 1)     // first transmission number
	if cookie {
		b = append(b, 0, 7, 0, 8, 'c', 'o', 'o', 'k')
	}
	return b
}

// TestSCTP sends an INIT to a Service by hand, since the machine may have no SCTP,
// and answers it by hand: the endpoint gets it at its own port, the client gets the
// answer from the Service.
func TestSCTP(t *testing.T) {
	eachFamily(t, func(t *testing.T, w *world) {
		ap, _ := applier(t)
		s := w.cluster()
		s.SetService(&cluster.Service{Key: cluster.Key{Namespace: "default", Name: "assoc"}, Type: cluster.NodePort, ClusterIPs: []netip.Addr{w.clusterIP(2)},
			Ports: []cluster.ServicePort{{Protocol: cluster.SCTP, Port: 9, NodePort: 30009}}})
		s.SetSlice(&cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: "assoc-1"}, Service: "assoc", IPv6: w.v6,
			Ports: []cluster.EndpointPort{{Protocol: cluster.SCTP, Port: 3868}}, Endpoints: []cluster.Endpoint{at(w.b)}})
		apply(t, ap, s.table(), w.pods())
		const sctp = 132
		server := w.raw(w.b, sctp)
		for i, tc := range []struct {
			from       place
			to         netip.AddrPort
			masquerade bool
		}{
			{w.a, netip.AddrPortFrom(w.clusterIP(2), 9), false},
			{w.r, netip.AddrPortFrom(w.clusterIP(2), 9), true},
			{w.outside, netip.AddrPortFrom(w.node.addr, 30009), true},
		} {
			client, port, tag := w.raw(tc.from, sctp), uint16(40000+i), uint32(0x1000+i)
			send(t, client, tc.to.Addr(), chunk(port, tc.to.Port(), 0, 1, initiation(tag, false)))
			from, b, ok := await(t, server, 3*time.Second, func(_ netip.Addr, b []byte) bool { return len(b) >= 20 && binary.BigEndian.Uint32(b[16:]) == tag })
			if !ok || binary.BigEndian.Uint16(b[2:]) != 3868 || (from != tc.from.addr) != tc.masquerade {
				t.Fatalf("%s to %s: the endpoint got %x from %s", tc.from.name, tc.to, b, from)
			}
			crc := binary.LittleEndian.Uint32(b[8:])
			copy(b[8:12], make([]byte, 4))
			if want := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)); crc != want {
				t.Errorf("%s: checksum %x, want %x", tc.from.name, crc, want)
			}
			send(t, server, from, chunk(3868, binary.BigEndian.Uint16(b), tag, 2, initiation(7, true)))
			from, b, ok = await(t, client, 3*time.Second, func(_ netip.Addr, b []byte) bool { return len(b) >= 20 && b[12] == 2 })
			if !ok || from != tc.to.Addr() || binary.BigEndian.Uint16(b) != tc.to.Port() || binary.BigEndian.Uint16(b[2:]) != port {
				t.Errorf("%s to %s: the answer came from %s: %x", tc.from.name, tc.to, from, b)
			}
		}
		// A port that is no Service's is refused.
		client := w.raw(w.a, sctp)
		send(t, client, w.clusterIP(2), chunk(41000, 10, 0, 1, initiation(9, false)))
		if from, _, ok := await(t, server, 300*time.Millisecond, func(netip.Addr, []byte) bool { return true }); ok {
			t.Errorf("the endpoint got from %s what was for another port", from)
		}
	})
}
