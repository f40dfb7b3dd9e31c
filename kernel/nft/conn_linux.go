package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	sendBuffer    = 32 << 20 // asked for; only root gets more than the system's maximum
	receiveBuffer = 4 << 20
	readSize      = 64 << 10 // of one read: the kernel fills dumps up to what it sees here
	answerTimeout = 60 * time.Second
)

// Conn is a netlink connection to the nf_tables of one network namespace. It is
// not safe for use by several goroutines.
type Conn struct {
	nl   *netlink.Conn
	raw  syscall.RawConn
	port uint32
	max  int // bytes of one transaction
	seq  uint32
	buf  []byte
	out  []byte // of the last transaction, to be used again
	done uint32 // transactions committed
}

// Dial connects to the network namespace of a file descriptor, or with 0 to that
// of the calling thread.
func Dial(netns int) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("nft: netlink socket: %w", err)
	}
	raw, err := nl.SyscallConn()
	if err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("nft: netlink socket: %w", err)
	}
	c := &Conn{nl: nl, raw: raw, seq: 1, buf: make([]byte, readSize)}
	if err := c.setUp(); err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("nft: netlink socket: %w", err)
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.nl.Close() }

// PortID is the number by which notices name this connection as the sender.
func (c *Conn) PortID() uint32 { return c.port }

// MaxSize is the largest Tx.Size that Commit can send.
func (c *Conn) MaxSize() int { return c.max }

// setUp asks for big buffers and for errors that say which attribute is meant
// and do not repeat the whole request.
func (c *Conn) setUp() error {
	var err error
	ctlErr := c.raw.Control(func(fd uintptr) { err = c.configure(int(fd)) })
	return errors.Join(ctlErr, err)
}

func (c *Conn) configure(fd int) error {
	for _, o := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK} {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, o, 1); err != nil {
			return err
		}
	}
	grow(fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, receiveBuffer)
	grow(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sendBuffer)
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	if err != nil {
		return err
	}
	c.max = n - 1024
	addr, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	c.port = addr.(*unix.SockaddrNetlink).Pid
	return nil
}

// grow enlarges a buffer as far as we may; it is no error where we may not.
func grow(fd, force, plain, size int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, size) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, size)
	}
}

func (c *Conn) send(b []byte) error {
	var err error
	rawErr := c.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return err != unix.EAGAIN
	})
	return errors.Join(rawErr, err)
}

// receive gives one datagram, valid until the next call.
func (c *Conn) receive() ([]byte, error) {
	var n int
	var err error
	rawErr := c.raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
		return err != unix.EAGAIN
	})
	if err := errors.Join(rawErr, err); err != nil {
		return nil, err
	}
	return c.buf[:n], nil
}

// message is a received netlink message without its header.
type message struct {
	typ, flags uint16
	seq, port  uint32
	data       []byte
}

// messages walks the messages of a datagram until f says false.
func messages(b []byte, f func(m message) bool) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		n := int(binary.NativeEndian.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return true
		}
		m := message{
			typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), port: binary.NativeEndian.Uint32(b[12:]),
			data: b[unix.NLMSG_HDRLEN:n],
		}
		if !f(m) {
			return false
		}
		b = b[min(align(n), len(b)):]
	}
	return true
}

// attributes gives the attributes of an nf_tables message.
func (m message) attributes() []byte {
	if len(m.data) < 4 {
		return nil
	}
	return m.data[4:]
}

// family is that of an nf_tables message.
func (m message) family() Family {
	if len(m.data) == 0 {
		return 0
	}
	return Family(m.data[0])
}

// answer is the outcome of an error or acknowledgement message.
type answer struct {
	errno  syscall.Errno // 0: acknowledged
	msg    string
	offset int // of the attribute meant, in the request; 0: not told
}

func (m message) answer() answer {
	if len(m.data) < 4 {
		return answer{errno: unix.EBADMSG}
	}
	a := answer{errno: syscall.Errno(-int32(binary.NativeEndian.Uint32(m.data)))}
	const ackTLVs, capped, head = 0x200, 0x100, 4 + unix.NLMSG_HDRLEN
	if m.flags&ackTLVs == 0 || len(m.data) < head {
		return a
	}
	at := head
	if m.flags&capped == 0 {
		at = 4 + align(int(binary.NativeEndian.Uint32(m.data[4:])))
	}
	each(m.data[min(at, len(m.data)):], func(typ uint16, v []byte) {
		switch {
		case typ == unix.NLMSGERR_ATTR_MSG:
			a.msg = cstr(v)
		case typ == unix.NLMSGERR_ATTR_OFFS && len(v) >= 4:
			a.offset = int(binary.NativeEndian.Uint32(v))
		}
	})
	return a
}
