package qperf

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blocking takes the descriptor out of a connection that the net package made, and makes it
// blocking, with every call bounded by tick. The connection itself is closed.
func blocking(c syscall.Conn, closer func() error) (fd int, err error) {
	defer func() { _ = closer() }()
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd = -1
	control := func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }
	if e := raw.Control(control); e != nil {
		return -1, e
	}
	if err != nil {
		return -1, fmt.Errorf("data socket: %w", err)
	}
	tv := unix.NsecToTimeval(int64(tick))
	for _, e := range []error{
		unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv),
	} {
		if e != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("data socket: %w", e)
		}
	}
	return fd, nil
}

// blockingTCP is blocking for a stream, with Nagle's algorithm left on as qperf leaves it
// (Go turns it off).
func blockingTCP(c *net.TCPConn) (int, error) {
	_ = c.SetNoDelay(false)
	return blocking(c, c.Close)
}

// pace has the kernel send no more than so many bytes a second, evenly.
func pace(fd int, rate float64) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, max(int(rate), 1)); err != nil {
		return fmt.Errorf("pace of %.0f bytes a second: %w", rate, err)
	}
	return nil
}

// sockaddr is a peer's address as the kernel gives it: kept raw, so that a datagram costs
// no allocation.
type sockaddr struct {
	raw unix.RawSockaddrAny
	len uint32
}

// processors gives Go's scheduler one for every loop that there may be, beside those for everything else: see raw.
var processors = sync.OnceFunc(func() { runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + MaxStreams + 2) })

// raw is a call of a loop. It does not tell the scheduler that it may block, as the unix package's calls do: that, and
// what the scheduler's watchdog makes of it, costs a tenth of what a whole message does. So long it keeps one of
// the scheduler's processors; tick bounds that.
func raw(call uintptr, fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if e != 0 {
		return -1, e
	}
	return int(n), nil
}

func read(fd int, b []byte) (int, error)  { return raw(unix.SYS_READ, fd, b) }
func write(fd int, b []byte) (int, error) { return raw(unix.SYS_WRITE, fd, b) }

func recvFrom(fd int, b []byte, from *sockaddr) (int, error) {
	from.len = unix.SizeofSockaddrAny
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.len)))
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

func sendTo(fd int, b []byte, to *sockaddr) error {
	_, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
		uintptr(unsafe.Pointer(&to.raw)), uintptr(to.len))
	if e != 0 {
		return e
	}
	return nil
}

// A batch is room for datagrams that are received by one call.
type batch struct {
	heads []mmsghdr
	data  [][]byte
}

// mmsghdr is the kernel's struct of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// newBatch has room for datagrams of up to size bytes; from is to become the sender of the first of each batch.
func newBatch(size int, from *sockaddr) *batch {
	const most = 32
	b := &batch{make([]mmsghdr, most), make([][]byte, most)}
	for i := range b.heads {
		b.data[i] = make([]byte, size)
		iov := &unix.Iovec{Base: &b.data[i][0]}
		iov.SetLen(size)
		b.heads[i].hdr.Iov = iov
		b.heads[i].hdr.SetIovlen(1)
	}
	b.heads[0].hdr.Name = (*byte)(unsafe.Pointer(&from.raw))
	return b
}

// receive takes what there is, one datagram at least; the i-th has b.heads[i].len bytes of b.data[i].
func (b *batch) receive(fd int, from *sockaddr) (int, error) {
	b.heads[0].hdr.Namelen = unix.SizeofSockaddrAny
	n, _, e := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.heads[0])), uintptr(len(b.heads)), unix.MSG_WAITFORONE, 0, 0)
	if e != 0 {
		return 0, e
	}
	from.len = b.heads[0].hdr.Namelen
	return int(n), nil
}

// addr gives the address in Go's form; the zero AddrPort when there is none.
func (s *sockaddr) addr() netip.AddrPort {
	port := func(p *uint16) uint16 {
		b := (*[2]byte)(unsafe.Pointer(p))
		return uint16(b[0])<<8 | uint16(b[1])
	}
	switch s.raw.Addr.Family {
	case unix.AF_INET:
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), port(&sa.Port))
	case unix.AF_INET6:
		sa := (*unix.RawSockaddrInet6)(unsafe.Pointer(&s.raw))
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), port(&sa.Port))
	}
	return netip.AddrPort{}
}

// pathMTU is what the kernel holds for the way to a connected socket's peer, in bytes of IP packet; 0 if it does not say.
func pathMTU(c *net.TCPConn) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	mtu := 0
	_ = raw.Control(func(fd uintptr) {
		level, option := unix.IPPROTO_IP, unix.IP_MTU
		if addrOf(c.RemoteAddr()).Addr().Is6() {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		mtu, _ = unix.GetsockoptInt(int(fd), level, option)
	})
	return mtu
}

// retransmits is how many segments the kernel has sent again on a stream.
func retransmits(fd int) uint32 {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0
	}
	return info.Total_retrans
}

// urgent sends qperf's sign of an error, one out-of-band byte, on the control connection.
func urgent(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.Sendto(int(fd), []byte{'?'}, unix.MSG_OOB, nil) }); err != nil {
		return err
	}
	return sent
}

// addrOf gives a TCP or UDP address in netip's form, IPv4 in IPv6 unwrapped.
func addrOf(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch a := a.(type) {
	case *net.TCPAddr:
		ap = a.AddrPort()
	case *net.UDPAddr:
		ap = a.AddrPort()
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func setBuffers(fd, size int) {
	if size > 0 {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, size)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, size)
	}
}

// deadline is far enough for one message of the control connection.
func deadline(c net.Conn, d time.Duration) { _ = c.SetDeadline(time.Now().Add(d)) }

// peerOf is the other end of a connected descriptor.
func peerOf(fd int) netip.AddrPort {
	sa, _ := unix.Getpeername(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// hungUp tells whether the other end has closed, without reading anything.
func hungUp(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	_ = raw.Control(func(fd uintptr) {
		n, _, e := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		gone = n == 0 && e == nil
	})
	return gone
}
