package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tries is how often a transaction is sent that the kernel could not take for a
// passing reason: no memory for it, or something in use that is being released.
const tries = 5

// Commit does a transaction: all of it or, with an error, nothing. An error
// names the operation (Error); with ErrUncertain it is not known whether it was
// done, with ErrTooBig it was not sent.
func (c *Conn) Commit(tx *Tx) error {
	if tx.err != nil {
		return tx.err
	}
	if tx.Empty() {
		return nil
	}
	if tx.wait {
		packetsUnderWay()
	}
	var err error
	for try := range tries {
		if err = c.commit(tx); !passing(err) {
			return err
		}
		time.Sleep(time.Millisecond << (2 * try))
	}
	return err
}

// packetsUnderWay waits until the packets that are in the kernel's rules now have
// left them: these are read under RCU, whose grace period membarrier(2) waits for.
// A kernel that has not this command (with nohz_full) gets a pause of many, and so does
// one with one CPU, where the command waits for nothing.
func packetsUnderWay() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 || runtime.NumCPU() == 1 {
		time.Sleep(200 * time.Millisecond)
	}
}

func passing(err error) bool {
	if errors.Is(err, ErrUncertain) {
		return false
	}
	for _, e := range []error{unix.ENOBUFS, unix.EINTR, unix.EBUSY, unix.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (c *Conn) commit(tx *Tx) error {
	b := tx.encode(c.seq, c.out)
	c.out = b.buf
	c.seq += uint32(len(b.of)) + 2
	if len(b.buf) > c.max {
		return fmt.Errorf("nft: %d bytes, %d operations: %w", len(b.buf), len(tx.ops), ErrTooBig)
	}
	if err := c.send(b.buf); err != nil {
		if errors.Is(err, unix.EMSGSIZE) {
			err = ErrTooBig
		}
		return fmt.Errorf("nft: send %d bytes: %w", len(b.buf), err)
	}
	if err := c.outcome(tx, b); err != nil {
		return err
	}
	c.done++
	return nil
}

// outcome reads answers up to that of the last message, or to one that is about
// the transaction as a whole. The first error is the cause of the others.
func (c *Conn) outcome(tx *Tx, b *batch) error {
	if err := c.nl.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return fmt.Errorf("nft: %w", err)
	}
	var first error
	last := b.seq + uint32(len(b.of))
	for done := false; !done; {
		datagram, err := c.receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return errors.Join(first, fmt.Errorf("nft: %w: %w", ErrUncertain, err))
		}
		messages(datagram, func(m message) bool {
			if m.typ != unix.NLMSG_ERROR || m.seq-b.seq > uint32(len(b.of)) {
				return true // of an earlier request
			}
			if a := m.answer(); a.errno != 0 && first == nil {
				first = b.describe(tx, m.seq, a)
			}
			done = done || m.seq == last || m.seq == b.seq
			return true
		})
	}
	return first
}

// describe names the operation, and where the kernel tells the element, that an
// error is about.
func (b *batch) describe(tx *Tx, seq uint32, a answer) error {
	e := &Error{Op: "transaction", Msg: a.msg, Err: syscall.Errno(a.errno)}
	i := int(seq-b.seq) - 1
	if i < 0 || i >= len(b.of) {
		return e
	}
	o := &tx.ops[b.of[i]]
	e.Op = o.name()
	if o.elems != nil && a.offset > 0 {
		if n := b.elementAt(i, a.offset); n >= 0 && n < len(o.elems) {
			e.Op += " (" + o.set.ElementText(o.elems[n], true) + ")"
		}
	}
	return e
}

// elementAt gives the index of the element that an offset into message i is in.
func (b *batch) elementAt(i, offset int) int {
	at := 0
	for skip := i + 1; skip > 0; skip-- {
		at += int(binary.NativeEndian.Uint32(b.buf[at:]))
	}
	end := at + int(binary.NativeEndian.Uint32(b.buf[at:]))
	index := -1
	walk(b.buf[at+headLen:end], headLen, func(typ uint16, v []byte, pos int) {
		if typ != elemListElements {
			return
		}
		n := b.from[i]
		walk(v, pos, func(_ uint16, e []byte, pos int) {
			if offset >= pos-4 && offset < pos+len(e) {
				index = n
			}
			n++
		})
	})
	return index
}

// walk is each with the offset of the value, counted from base.
func walk(b []byte, base int, f func(typ uint16, v []byte, pos int)) {
	pos := base
	each(b, func(typ uint16, v []byte) {
		f(typ, v, pos+4)
		pos += align(4 + len(v))
	})
}
