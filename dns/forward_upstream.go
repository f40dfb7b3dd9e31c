package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamUDP is the answer size we take over UDP: it fits every path (DNS flag
	// day 2020).
	upstreamUDP = 1232
	// readSize has room for the answers of upstreams that do not keep to it.
	readSize = 4096
)

// upstream is a resolver to ask.
type upstream struct {
	addr   netip.AddrPort
	failed atomic.Int64 // when it last did not answer, Unix nanoseconds; 0: it did
	loops  atomic.Bool  // it asks us
	checks atomic.Bool  // a question of our own is under way
	counts upstreamCounts
}

func (u *upstream) fail() { u.failed.Store(time.Now().UnixNano()) }

// exchange asks over UDP, and over TCP where the answer does not fit or is
// broken. Each question has a socket, so a source port, of its own.
func (u *upstream) exchange(ctx context.Context, k cacheKey) (*dns.Msg, error) {
	m, err := u.try(ctx, "udp", k, true)
	if err == nil && m.Rcode == dns.RcodeFormatError {
		m, err = u.try(ctx, "udp", k, false) // from before EDNS (RFC 6891, section 7)
	}
	if err == nil && !m.Truncated || err != nil && !errors.Is(err, errBroken) {
		return m, err
	}
	whole, tcpErr := u.try(ctx, "tcp", k, true)
	if tcpErr != nil && err == nil {
		return m, nil // cut short is better than nothing
	}
	return whole, tcpErr
}

func (u *upstream) try(ctx context.Context, network string, k cacheKey, edns bool) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, u.addr.String())
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %w", u.addr, err)
	}
	defer c.Close()
	if t, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(t)
	}
	// A question whose asker is gone does not hold its socket to the deadline.
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	id := uint16(rand.Uint32())
	m, err := talk(c, k, id, request(k, id, edns))
	if err != nil {
		return nil, fmt.Errorf("upstream %s: %s: %w", u.addr, network, err)
	}
	return m, nil
}

func talk(c net.Conn, k cacheKey, id uint16, req []byte) (*dns.Msg, error) {
	stream := c.RemoteAddr().Network() == "tcp"
	if stream {
		req = append(binary.BigEndian.AppendUint16(nil, uint16(len(req))), req...)
	}
	if _, err := c.Write(req); err != nil {
		return nil, err
	}
	buf := make([]byte, readSize)
	for {
		b, err := receive(c, stream, buf)
		if err != nil {
			return nil, err
		}
		m, err := parseReply(b, k, id)
		if m == nil && err == nil && !stream {
			continue // an answer to another question: late, or forged
		}
		if m == nil && err == nil {
			err = errBroken
		}
		return m, err
	}
}

func receive(c net.Conn, stream bool, buf []byte) ([]byte, error) {
	if !stream {
		n, err := c.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, b)
	return b, err
}

// request is the question in wire form, with recursion desired.
func request(k cacheKey, id uint16, edns bool) []byte {
	flags := uint16(flagRD | flagAD)
	if k.cd {
		flags |= flagCD
	}
	b := binary.BigEndian.AppendUint16(nil, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, 0, 1, 0, 0, 0, 0, 0, flagByte(edns))
	b = append(b, k.name...)
	b = binary.BigEndian.AppendUint16(b, uint16(k.kind))
	b = binary.BigEndian.AppendUint16(b, classIN)
	if edns {
		b = append(b, 0, 0, byte(TypeOPT), upstreamUDP>>8, upstreamUDP&0xff, 0, 0, flagByte(k.do)<<7, 0, 0, 0)
	}
	return b
}

// parseReply reads the answer to our question; both results are nil where it is
// one to another.
func parseReply(b []byte, k cacheKey, id uint16) (*dns.Msg, error) {
	if len(b) < headerSize || binary.BigEndian.Uint16(b) != id || b[2]&(flagQR>>8) == 0 {
		return nil, nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	if !sound(b) {
		return nil, errBroken
	}
	if len(m.Question) == 0 && !good(m) {
		m.Question = []dns.Question{{Name: k.name.String(), Qtype: uint16(k.kind), Qclass: classIN}}
		return m, nil // some give an error without the question
	}
	if len(m.Question) != 1 || Type(m.Question[0].Qtype) != k.kind || m.Question[0].Qclass != classIN {
		return nil, nil
	}
	if n, err := ParseName(m.Question[0].Name); err != nil || n != k.name {
		return nil, nil
	}
	m.Question[0].Name = strings.ToLower(m.Question[0].Name)
	return m, nil
}

// sound says whether a message that could be read has as many records as it
// says, all of class IN, and nothing behind them: the library is lenient there.
func sound(b []byte) bool {
	at := headerSize
	for range binary.BigEndian.Uint16(b[4:]) {
		if at = skipName(b, at); at < 0 || at+4 > len(b) {
			return false
		}
		at += 4
	}
	records := 0
	for i := 6; i < headerSize; i += 2 {
		records += int(binary.BigEndian.Uint16(b[i:]))
	}
	for range records {
		r, ok := recordAt(b, at)
		if !ok || r.kind != TypeOPT && binary.BigEndian.Uint16(b[r.fixed+2:]) != classIN {
			return false
		}
		at = r.end
	}
	return at == len(b)
}
