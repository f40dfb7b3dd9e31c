package observe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Ping is one try to reach an address with an ICMP echo of a size that may not be
// cut into fragments.
type Ping struct {
	To   netip.Addr `json:"to"`
	Size int        `json:"size"` // of the IP packet, in bytes; 0: a small one
	// OK says that the answer came. Error says what did instead.
	OK    bool          `json:"ok"`
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took_ns,omitempty"`
	// Denied says that there was no right to send it, so that nothing is known.
	Denied bool `json:"denied,omitempty"`
}

// pingTries is how often an unanswered echo is sent.
const pingTries = 3

// Do sends the echo, and again where nothing answers within 400 ms. Pings at the
// same time need different numbers.
func (p *Ping) Do(ctx context.Context, number uint16) {
	network := "ip4:icmp"
	if p.To.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn, err := (&net.ListenConfig{Control: noFragments(p.To.Is6())}).ListenPacket(ctx, network, "")
	if err != nil {
		p.Error, p.Denied = err.Error(), errors.Is(err, syscall.EPERM)
		return
	}
	defer conn.Close()
	id := uint16(os.Getpid())<<8 | number&0xff
	for try := range uint16(pingTries) {
		start := time.Now()
		if _, err := conn.WriteTo(p.echo(id, try), &net.IPAddr{IP: p.To.AsSlice()}); err != nil {
			p.Error = err.Error()
			if errors.Is(err, syscall.EMSGSIZE) {
				p.Error = fmt.Sprintf("a packet of %d bytes is longer than the node's own link takes", p.Size)
			}
			return
		}
		if p.answered(conn, id, try) {
			p.OK, p.Error, p.Took = true, "", time.Since(start)
			return
		}
		p.Error = fmt.Sprintf("no answer to %d tries", try+1)
	}
}

// noFragments sets "do not fragment", also where the kernel believes that the way
// is narrower: what it believes is part of the question.
func noFragments(v6 bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) (err error) {
		return errors.Join(c.Control(func(fd uintptr) {
			if v6 {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			}
		}), err)
	}
}

// echo is the ICMP message: type 8, or 128 of ICMPv6, whose checksum is the
// kernel's to fill in.
func (p *Ping) echo(id, seq uint16) []byte {
	header := 20
	if p.To.Is6() {
		header = 40
	}
	b := make([]byte, max(p.Size-header, 16))
	b[0] = 8
	if p.To.Is6() {
		b[0] = 128
	}
	binary.BigEndian.PutUint16(b[4:], id)
	binary.BigEndian.PutUint16(b[6:], seq)
	if !p.To.Is6() {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

func (p *Ping) answered(conn net.PacketConn, id, seq uint16) bool {
	_ = conn.SetReadDeadline(time.Now().Add(400 * time.Millisecond))
	buf := make([]byte, 70<<10)
	for {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return false
		}
		a, ok := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		reply := byte(0)
		if p.To.Is6() {
			reply = 129
		}
		if ok && a.Unmap() == p.To && n >= 8 && buf[0] == reply && binary.BigEndian.Uint16(buf[4:]) == id && binary.BigEndian.Uint16(buf[6:]) == seq {
			return true
		}
	}
}
