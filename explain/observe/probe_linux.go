package observe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
)

// Probe is one real connection from a source port of its own.
type Probe struct {
	Protocol cluster.Protocol
	To       string // host:port; a name is resolved as in the probe's namespace
	Port     uint16 // the source port
	Timeout  time.Duration
}

// ProbeResult is what the prober itself met.
type ProbeResult struct {
	Outcome string         `json:"outcome"` // answered, refused, silence, unreachable, no-name
	Error   string         `json:"error,omitempty"`
	Local   netip.AddrPort `json:"local,omitzero"`
	Remote  netip.AddrPort `json:"remote,omitzero"`
}

// FreePort gives a source port that nothing uses here at the moment.
func FreePort() (uint16, error) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port), nil
}

// Run sends the probe: for TCP it opens a connection, for UDP it sends a datagram
// and waits for any answer.
func (p Probe) Run(ctx context.Context) ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	network := "tcp"
	d := net.Dialer{FallbackDelay: -1, LocalAddr: &net.TCPAddr{Port: int(p.Port)}, Control: reuse}
	if p.Protocol == cluster.UDP {
		network, d.LocalAddr = "udp", &net.UDPAddr{Port: int(p.Port)}
	}
	conn, err := d.DialContext(ctx, network, p.To)
	if err != nil {
		return failed(err)
	}
	defer conn.Close()
	r := ProbeResult{Outcome: "answered", Local: addrPort(conn.LocalAddr()), Remote: addrPort(conn.RemoteAddr())}
	if network == "tcp" {
		_ = conn.(*net.TCPConn).SetLinger(0) // no port stays behind in TIME_WAIT
		return r
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	if _, err := conn.Write([]byte("podlane probe\n")); err != nil {
		return merge(r, failed(err))
	}
	if _, err := conn.Read(make([]byte, 2048)); err != nil {
		return merge(r, failed(err))
	}
	return r
}

func reuse(_, _ string, c syscall.RawConn) (err error) {
	return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) }), err)
}

func merge(r, f ProbeResult) ProbeResult {
	r.Outcome, r.Error = f.Outcome, f.Error
	return r
}

func addrPort(a net.Addr) netip.AddrPort {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func failed(err error) ProbeResult {
	r := ProbeResult{Outcome: "error", Error: err.Error()}
	var name *net.DNSError
	switch {
	case errors.As(err, &name):
		r.Outcome = "no-name"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		r.Outcome = "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		r.Outcome = "unreachable"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		r.Outcome = "silence"
	}
	return r
}

func (r ProbeResult) String() string {
	if r.Error != "" {
		return fmt.Sprintf("%s (%s)", r.Outcome, r.Error)
	}
	return r.Outcome
}
