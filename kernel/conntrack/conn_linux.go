package conntrack

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
	readSize      = 64 << 10
	answerTimeout = 30 * time.Second
)

// Conn is a netlink connection to the flow table of one network namespace. It is
// not safe for use by several goroutines.
type Conn struct {
	nl  *netlink.Conn
	raw syscall.RawConn
	seq uint32
	buf []byte
	// unfiltered is of a kernel that does not know CTA_FILTER (before 5.8).
	unfiltered bool
}

// Dial connects to the network namespace of a file descriptor, or with 0 to that
// of the calling thread.
func Dial(netns int) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, fmt.Errorf("conntrack: netlink socket: %w", err)
	}
	raw, err := nl.SyscallConn()
	if err != nil {
		_ = nl.Close()
		return nil, fmt.Errorf("conntrack: netlink socket: %w", err)
	}
	return &Conn{nl: nl, raw: raw, buf: make([]byte, readSize)}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.nl.Close() }

// Each gives every flow of a protocol and family to f. The kernel leaves the
// other protocols out by itself where it can. With ErrPartial some flows may be
// missing; those that were given are there.
func (c *Conn) Each(protocol uint8, v6 bool, f func(Flow)) error {
	give := func(m []byte) {
		if flow, ok := parseFlow(m); ok && flow.Protocol == protocol {
			f(flow)
		}
	}
	if !c.unfiltered {
		err := c.request(msgGet, unix.NLM_F_DUMP, v6, filterOf(protocol), give)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return wrap("list", err)
		}
		c.unfiltered = true
	}
	return wrap("list", c.request(msgGet, unix.NLM_F_DUMP, v6, nil, give))
}

// Delete deletes one flow; one that is gone already, or whose tuple has become
// that of another flow, is no error.
func (c *Conn) Delete(f Flow) error {
	err := c.request(msgDelete, unix.NLM_F_ACK, f.Orig.Dst.Addr().Is6(), keyOf(f), func([]byte) {})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return wrap("delete "+f.String(), err)
}

func wrap(op string, err error) error {
	if err == nil || err == ErrPartial {
		return err
	}
	return fmt.Errorf("conntrack %s: %w", op, err)
}

// filterOf asks for the flows of one protocol only.
func filterOf(protocol uint8) func(*netlink.AttributeEncoder) error {
	return func(e *netlink.AttributeEncoder) error {
		e.Nested(ctaTupleOrig, func(e *netlink.AttributeEncoder) error {
			e.Nested(tupleProto, func(e *netlink.AttributeEncoder) error {
				e.Uint8(protoNum, protocol)
				return nil
			})
			return nil
		})
		e.Nested(ctaFilter, func(e *netlink.AttributeEncoder) error {
			e.Bytes(filterOrigFlags, binary.NativeEndian.AppendUint32(nil, flagProtoNum))
			e.Bytes(filterReplyFlags, binary.NativeEndian.AppendUint32(nil, 0))
			return nil
		})
		return nil
	}
}

// keyOf names one flow: the identifier beside the tuple keeps a flow that came in
// its place from being meant.
func keyOf(f Flow) func(*netlink.AttributeEncoder) error {
	src, dst := uint16(ipV4Src), uint16(ipV4Dst)
	if f.Orig.Dst.Addr().Is6() {
		src, dst = ipV6Src, ipV6Dst
	}
	return func(e *netlink.AttributeEncoder) error {
		e.ByteOrder = binary.BigEndian
		e.Nested(ctaTupleOrig, func(e *netlink.AttributeEncoder) error {
			e.Nested(tupleIP, func(e *netlink.AttributeEncoder) error {
				e.Bytes(src, f.Orig.Src.Addr().AsSlice())
				e.Bytes(dst, f.Orig.Dst.Addr().AsSlice())
				return nil
			})
			e.Nested(tupleProto, func(e *netlink.AttributeEncoder) error {
				e.Uint8(protoNum, f.Protocol)
				e.Bytes(protoSrcPort, binary.BigEndian.AppendUint16(nil, f.Orig.Src.Port()))
				e.Bytes(protoDstPort, binary.BigEndian.AppendUint16(nil, f.Orig.Dst.Port()))
				return nil
			})
			return nil
		})
		e.Bytes(ctaID, binary.BigEndian.AppendUint32(nil, f.ID))
		if f.Zone != 0 {
			e.Bytes(ctaZone, binary.BigEndian.AppendUint16(nil, f.Zone))
		}
		return nil
	}
}

// request sends one request and gives the attributes of every message of the
// answer to f.
func (c *Conn) request(typ, flags uint16, v6 bool, body func(*netlink.AttributeEncoder) error, f func([]byte)) error {
	if err := c.nl.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	e := netlink.NewAttributeEncoder()
	if body != nil {
		if err := body(e); err != nil {
			return err
		}
	}
	attrs, err := e.Encode()
	if err != nil {
		return err
	}
	c.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+4+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, subsystem<<8|typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = append(b, 0, 0, 0, 0, family(v6), 0, 0, 0) // sender: the kernel fills it in; version 0, resource 0
	if err := c.send(append(b, attrs...)); err != nil {
		return err
	}
	return c.answers(c.seq, f)
}

func family(v6 bool) byte {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// answers reads until the kernel says that an answer is whole.
func (c *Conn) answers(seq uint32, f func([]byte)) error {
	partial := false
	for {
		b, err := c.receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		for len(b) >= unix.NLMSG_HDRLEN {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.NLMSG_HDRLEN || n > len(b) {
				break
			}
			m := b[:n]
			b = b[min((n+3)&^3, len(b)):]
			if binary.NativeEndian.Uint32(m[8:]) != seq {
				continue // of a request that was given up
			}
			partial = partial || binary.NativeEndian.Uint16(m[6:])&unix.NLM_F_DUMP_INTR != 0
			switch binary.NativeEndian.Uint16(m[4:]) {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return outcome(m[unix.NLMSG_HDRLEN:], partial)
			default:
				if n >= unix.NLMSG_HDRLEN+4 {
					f(m[unix.NLMSG_HDRLEN+4:])
				}
			}
		}
	}
}

// outcome reads the number that ends an answer.
func outcome(b []byte, partial bool) error {
	if len(b) >= 4 {
		if errno := -int32(binary.NativeEndian.Uint32(b)); errno > 0 {
			return syscall.Errno(errno)
		}
	}
	if partial {
		return ErrPartial
	}
	return nil
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
