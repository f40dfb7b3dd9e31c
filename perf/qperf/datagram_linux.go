package qperf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Between two of our own kind a datagram that has room for it begins with this header:
//
//	0  sequence number, 8 bytes
//	8  nonce of the test, 4 bytes: a late datagram of an earlier test is told apart
//	12 1 when it was sent within the client's clock, 4 bytes
//
// A shorter one carries as much of the sequence number as fits.
const headerSize = 16

func (f *flow) stamp(b []byte, seq uint64, counted bool) {
	var short [headerSize]byte
	h := short[:]
	if len(b) >= headerSize {
		h = b[:headerSize]
	}
	binary.LittleEndian.PutUint64(h[0:], seq)
	binary.LittleEndian.PutUint32(h[8:], f.nonce)
	h[12] = 0
	if counted {
		h[12] = 1
	}
	if len(b) < headerSize {
		copy(b, h)
	}
}

// stray tells whether a datagram of n bytes is none of this test's.
func (f *flow) stray(b []byte, n int) bool {
	return n != f.size || f.own && n >= headerSize && binary.LittleEndian.Uint32(b[8:]) != f.nonce
}

// wait tells, after a failed call on a datagram socket, whether to go on. An error such as ECONNREFUSED is counted and is not the end.
func (f *flow) wait(err error, c *Counters) bool {
	t := f.now()
	if f.past(t) {
		return false
	}
	if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && t >= f.from {
		c.Errors++
	}
	return true
}

func sendDatagrams(f *flow) {
	if f.rate > 0 {
		sendPaced(f)
		return
	}
	b, free := f.message()
	defer free()
	clock := sparing{f: f}
	t := clock.now()
	for seq := uint64(0); ; seq++ {
		f.stamp(b, seq, t >= f.from)
		_, err := write(f.fd, b)
		before := t
		t = clock.now()
		if err != nil {
			clock.left = 0
			if !f.wait(err, &f.sent) {
				return
			}
			continue
		}
		if before >= f.from && f.own {
			f.account.counted++
		}
		if !f.count(&f.sent, f.size, t) {
			return
		}
	}
}

func receiveDatagrams(f *flow) {
	b := newBatch(f.size+1, &f.peer)
	for {
		n, err := b.receive(f.fd, &f.peer)
		t := f.now()
		if err != nil {
			if !f.wait(err, &f.received) {
				break
			}
			continue
		}
		for i := range n {
			if got := int(b.heads[i].len); !f.stray(b.data[i], got) {
				f.note(b.data[i])
				f.count(&f.received, got, t)
			}
		}
		if f.past(t) {
			break
		}
	}
	if f.own {
		f.drain(b)
	}
}

// drain takes what was under way when the clock stopped, for the account of loss only.
func (f *flow) drain(b *batch) {
	for end := f.now() + 5*tick; f.now() < end && !f.stop.Load(); {
		n, err := b.receive(f.fd, &f.peer)
		if errors.Is(err, unix.EINTR) { // the scheduler's signal, not the end of the wait
			continue
		}
		if err != nil {
			return
		}
		for i := range n {
			if !f.stray(b.data[i], int(b.heads[i].len)) {
				f.note(b.data[i])
			}
		}
	}
}

func (f *flow) note(b []byte) {
	if f.own && f.size >= headerSize && b[12] == 1 {
		f.account.note(binary.LittleEndian.Uint64(b))
	}
}

// pingDatagrams sends a datagram and waits for its reply. One that does not come in time is
// counted as lost and the next is sent; in qperf it holds up the test to its end, and the
// mean, elapsed / messages, is false.
func pingDatagrams(f *flow) {
	b, reply := make([]byte, f.size), make([]byte, f.size+1)
	f.ping.rtt = newRTT()
	limit := patience{rto: 10 * tick}
	for seq := uint64(0); ; seq++ {
		start := f.now()
		f.stamp(b, seq, start >= f.from)
		if _, err := write(f.fd, b); err != nil {
			if !f.wait(err, &f.sent) {
				return
			}
			continue
		}
		if !f.count(&f.sent, f.size, start) {
			return
		}
		switch end, got := f.await(b, reply, start+limit.rto); got {
		case over:
			if end-start >= tick {
				f.missed(start, end)
			}
			return
		case lost:
			limit.missed()
			f.missed(start, end)
		case answered:
			limit.measured(end - start)
			if !f.count(&f.received, f.size, end) {
				return
			}
			f.roundTrip(start, end)
		}
	}
}

type outcome int

const (
	over outcome = iota
	lost
	answered
)

// await reads until the reply to b, the deadline, or the end of the test. Replies to
// earlier datagrams are told by their sequence number and passed over; the real server
// does not promise to send back what it got, so there any reply counts.
func (f *flow) await(b, reply []byte, deadline time.Duration) (time.Duration, outcome) {
	head := min(f.size, headerSize)
	for {
		n, err := read(f.fd, reply)
		t := f.now()
		if err == nil && n == f.size && (!f.own || bytes.Equal(reply[:head], b[:head])) {
			return t, answered
		}
		if err != nil && !f.wait(err, &f.received) || f.past(t) {
			return t, over
		}
		if t >= deadline {
			return t, lost
		}
	}
}

func (f *flow) missed(start, end time.Duration) {
	if start >= f.from {
		f.ping.lost++
		f.ping.lostWait += end - start
	}
}

// patience is how long a reply may take: TCP's retransmission timer (RFC 6298), but from 20 ms to 1 s.
type patience struct{ smooth, spread, rto time.Duration }

func (p *patience) measured(rtt time.Duration) {
	if p.smooth == 0 {
		p.smooth, p.spread = rtt, rtt/2
	} else {
		p.spread += ((p.smooth - rtt).Abs() - p.spread) / 4
		p.smooth += (rtt - p.smooth) / 8
	}
	p.rto = min(max(p.smooth+4*p.spread, tick), time.Second)
}

func (p *patience) missed() { p.rto = min(2*p.rto, time.Second) }

// echoDatagrams sends every datagram back to where it came from, from the address it was sent to (the socket is bound to it).
func echoDatagrams(f *flow) {
	b := make([]byte, f.size+1)
	for {
		n, err := recvFrom(f.fd, b, &f.peer)
		t := f.now()
		if err != nil {
			if !f.wait(err, &f.received) {
				return
			}
			continue
		}
		if f.past(t) {
			return
		}
		if f.stray(b, n) {
			continue
		}
		f.count(&f.received, n, t)
		if err := sendTo(f.fd, b[:n], &f.peer); err != nil {
			if !f.wait(err, &f.sent) {
				return
			}
			continue
		}
		f.count(&f.sent, n, t)
	}
}
