package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// answerTimeout bounds the wait for one answer of the kernel.
const answerTimeout = 10 * time.Second

// dumpTries is how often a dump is begun again when the kernel says that what it
// lists changed meanwhile.
const dumpTries = 20

// errDumpInterrupted is a dump that never came through consistent.
var errDumpInterrupted = errors.New("the kernel's list changed while it was read")

// conn is rtnetlink (rtnetlink(7)) over one socket, one request at a time. It
// works on any NETLINK_ROUTE descriptor, so that a pod's namespace is configured
// through a socket that was opened inside it, with the same code as our own.
type conn struct {
	fd  int
	pid uint32 // the socket's port
	seq uint32
}

// openConn opens a socket in the calling thread's network namespace.
func openConn() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	c, err := newConn(fd)
	if err != nil {
		_ = unix.Close(fd)
	}
	return c, err
}

// newConn uses a socket that is open. It does not own it: the caller closes it.
func newConn(fd int) (*conn, error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a netlink socket: %w", fd, err)
	}
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || family != unix.AF_NETLINK || proto != unix.NETLINK_ROUTE {
		return nil, fmt.Errorf("descriptor %d is not a NETLINK_ROUTE socket", fd)
	}
	port, err := portOf(fd)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// Both make answers better and are not needed: error texts, and dumps that the
	// kernel filters (Linux 4.12 and 4.20).
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	return &conn{fd: fd, pid: port, seq: uint32(time.Now().UnixNano())}, nil
}

// portOf gives the socket's port, by which its answers are told, and has the
// kernel choose one where it has none yet.
func portOf(fd int) (uint32, error) {
	for {
		name, err := unix.Getsockname(fd)
		if err != nil {
			return 0, err
		}
		if port := name.(*unix.SockaddrNetlink).Pid; port != 0 {
			return port, nil
		}
		if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
			return 0, fmt.Errorf("bind: %w", err)
		}
	}
}

// request sends one message and waits for the kernel's verdict on it.
func (c *conn) request(typ, flags uint16, body []byte) error {
	_, err := c.roundTrip(typ, flags|unix.NLM_F_ACK, body)
	return err
}

// get asks for one object and gives its message.
func (c *conn) get(typ uint16, body []byte) ([]byte, error) {
	msgs, err := c.roundTrip(typ, unix.NLM_F_ACK, body)
	if err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		return nil, unix.ENOENT
	}
	return msgs[0], nil
}

// dump asks for all objects of a kind, again and again until it gets a list that
// is of one moment.
func (c *conn) dump(typ uint16, body []byte) ([][]byte, error) {
	for range dumpTries {
		msgs, err := c.roundTrip(typ, unix.NLM_F_DUMP, body)
		if !errors.Is(err, errDumpInterrupted) {
			return msgs, err
		}
	}
	return nil, errDumpInterrupted
}

func (c *conn) roundTrip(typ, flags uint16, body []byte) ([][]byte, error) {
	c.seq++
	if err := c.send(typ, flags, body); err != nil {
		return nil, fmt.Errorf("netlink send: %w", err)
	}
	var a answer
	deadline := time.Now().Add(answerTimeout)
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	for !a.done {
		msgs, err := receive(c.fd, buf, deadline)
		if err != nil {
			return nil, fmt.Errorf("netlink receive: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Seq == c.seq && m.Header.Pid == c.pid {
				a.take(m)
			}
		}
	}
	if a.err == nil && a.interrupted {
		a.err = errDumpInterrupted
	}
	return a.msgs, a.err
}

func (c *conn) send(typ, flags uint16, body []byte) error {
	b := make([]byte, 0, unix.NLMSG_HDRLEN+len(body))
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, c.pid)
	b = append(b, body...)
	kernel := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
	return uninterrupted(func() error { return unix.Sendto(c.fd, b, 0, kernel) })
}

// answer collects the messages of one answer.
type answer struct {
	msgs        [][]byte
	interrupted bool
	done        bool
	err         error
}

func (a *answer) take(m syscall.NetlinkMessage) {
	a.interrupted = a.interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
	switch m.Header.Type {
	case unix.NLMSG_ERROR, unix.NLMSG_DONE:
		a.done = true
		a.err = verdict(m)
	default:
		a.msgs = append(a.msgs, bytes.Clone(m.Data))
	}
}

// verdict reads an error message (struct nlmsgerr), with the kernel's own text
// where it gives one.
func verdict(m syscall.NetlinkMessage) error {
	if len(m.Data) < 4 {
		return nil
	}
	code := int32(binary.NativeEndian.Uint32(m.Data))
	if code == 0 {
		return nil
	}
	errno := syscall.Errno(-code)
	if text := verdictText(m); text != "" {
		return fmt.Errorf("%w: %s", errno, text)
	}
	return errno
}

func verdictText(m syscall.NetlinkMessage) string {
	rest := m.Data[4:]
	if m.Header.Flags&unix.NLM_F_ACK_TLVS == 0 || len(rest) < unix.NLMSG_HDRLEN {
		return ""
	}
	if m.Header.Type == unix.NLMSG_ERROR { // the request comes before the attributes
		n := unix.NLMSG_HDRLEN
		if m.Header.Flags&unix.NLM_F_CAPPED == 0 {
			n = int(binary.NativeEndian.Uint32(rest)+3) &^ 3
		}
		if n > len(rest) {
			return ""
		}
		rest = rest[n:]
	}
	text := ""
	for a := range attributes(rest) {
		if a.typ == unix.NLMSGERR_ATTR_MSG {
			text = strings.TrimRight(string(a.data), "\x00")
		}
	}
	return text
}

// buffer holds one datagram: the kernel fills at most 32 KiB of a dump at once.
type buffer [64 << 10]byte

// buffers are used again: a pod's start has some forty answers, each of a few bytes.
var buffers = sync.Pool{New: func() any { return new(buffer) }}

// receive reads one datagram, whose messages are in buf. The descriptor may be
// blocking or not, and someone else's, so the wait is a poll.
func receive(fd int, buf *buffer, deadline time.Time) ([]syscall.NetlinkMessage, error) {
	for {
		n, flags, err := receiveNow(fd, buf[:])
		if err == unix.EAGAIN {
			if err := await(fd, deadline); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if flags&unix.MSG_TRUNC != 0 {
			return nil, errors.New("message longer than the buffer")
		}
		return syscall.ParseNetlinkMessage(buf[:n])
	}
}

// receiveNow reads what is there, from the kernel alone.
func receiveNow(fd int, buf []byte) (n, flags int, err error) {
	var from unix.Sockaddr
	err = uninterrupted(func() error {
		n, _, flags, from, err = unix.Recvmsg(fd, buf, nil, unix.MSG_DONTWAIT)
		return err
	})
	if sa, ok := from.(*unix.SockaddrNetlink); err == nil && (!ok || sa.Pid != 0) {
		return 0, 0, nil
	}
	return n, flags, err
}

func await(fd int, deadline time.Time) error {
	return uninterrupted(func() error {
		left := time.Until(deadline)
		if left <= 0 {
			return errors.New("no answer from the kernel")
		}
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		return err
	})
}

// uninterrupted calls f again as long as a signal interrupts it.
func uninterrupted(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
