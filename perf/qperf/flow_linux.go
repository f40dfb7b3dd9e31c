package qperf

import (
	"errors"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// tick bounds every blocking call on a data socket (SO_RCVTIMEO, SO_SNDTIMEO): so late
// can a loop notice that its time is up when nothing arrives.
const tick = 20 * time.Millisecond

// A flow is one side of one test's data: a blocking descriptor and what went over it.
//
// The loops run on threads of their own and call the kernel directly. Go's network poller
// would add an epoll round to every message, which is a good part of what a hop costs.
// What completes outside from..until is not counted, and neither is a part of a message, so
// the length of the last blocking call does not matter.
//
//	base      from                          until
//	 |- warm-up -|------- counted -------------|
type flow struct {
	fd     int
	size   int  // bytes of a message
	own    bool // the peer speaks the extension: datagrams carry a header
	nonce  uint32
	base   time.Time
	from   time.Duration
	until  time.Duration // 0 = no timer: until the peer closes or stop
	stop   *atomic.Bool
	over   time.Duration // the first of until, end of file, stop
	engine CPUTime       // of the loops' threads, while the time is counted
	before CPUTime       // what the loop's thread had used when it began to count
	peer   sockaddr      // UDP server: the sender of the last datagram
	rate   float64       // messages/s; 0 = as fast as it goes
	open   *Open         // udp_open: how the rate was kept
	failed error         // why the loop could not go on

	listener int            // tcp_crr, server: its descriptor
	server   netip.AddrPort // tcp_crr, client: where to connect

	retransmits uint32 // segments, of all streams

	sent, received Counters
	parts          recorder // of what was received
	account        account
	ping           ping
}

// ping is what the client of a latency test learns beside the counters.
type ping struct {
	rtt      *hdrhistogram.Histogram // nanoseconds, to and fro
	lost     uint64                  // datagrams without a reply
	lostWait time.Duration           // time spent waiting for those
}

func newRTT() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute), 3) }

// runAll runs a loop for each descriptor at the same time, and adds up in f what all did.
func (f *flow) runAll(fds []int, loop func(*flow)) {
	others := make([]*flow, len(fds)-1)
	var all sync.WaitGroup
	for i := range others {
		other := *f
		other.fd = fds[i+1]
		others[i] = &other
		all.Go(func() { others[i].run(loop) })
	}
	f.run(loop)
	all.Wait()
	f.retransmits = retransmits(f.fd)
	for _, o := range others {
		f.sent.add(o.sent)
		f.received.add(o.received)
		f.parts.add(o.parts)
		f.engine.add(o.engine)
		f.retransmits += retransmits(o.fd)
		f.over = min(f.over, o.over)
	}
}

// run runs the loop on a thread of its own, and fixes the end.
func (f *flow) run(loop func(*flow)) {
	processors()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f.before = threadCPU()
	loop(f)
	f.engine.add(threadCPU().minus(f.before))
	if f.over == 0 {
		f.over = f.now()
	}
	if f.until > 0 {
		f.over = min(f.over, f.until)
	}
	f.parts.note(f.elapsed(), f.received.Messages)
}

func (f *flow) now() time.Duration     { return time.Since(f.base) }
func (f *flow) elapsed() time.Duration { return max(f.over-f.from, 0) }

func (f *flow) past(t time.Duration) bool {
	return f.stop.Load() || f.until > 0 && t >= f.until
}

// again tells whether a loop should go on after a failed call.
func (f *flow) again(err error) bool {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return !f.past(f.now())
	}
	f.over = f.now()
	return false
}

// writeStream writes one whole message; false means the end.
func (f *flow) writeStream(b []byte) bool {
	for {
		n, err := write(f.fd, b)
		switch {
		case n == len(b):
			return true
		case n > 0:
			if b = b[n:]; f.past(f.now()) {
				return false
			}
		case !f.again(err):
			return false
		}
	}
}

// readStream reads one whole message; false means the end.
func (f *flow) readStream(b []byte) bool {
	for {
		n, err := read(f.fd, b)
		switch {
		case n == len(b):
			return true
		case n > 0:
			if b = b[n:]; f.past(f.now()) {
				return false
			}
		case n == 0 && err == nil:
			f.over = f.now() // the peer has closed
			return false
		case !f.again(err):
			return false
		}
	}
}

// count adds one message that was complete at t; false means that the time is over.
func (f *flow) count(c *Counters, bytes int, t time.Duration) bool {
	if f.past(t) {
		return false
	}
	if t >= f.from {
		if t-f.from >= f.parts.next {
			f.part(t)
		}
		c.Bytes += uint64(bytes)
		c.Messages++
	}
	return true
}

// part notes that a part of the counted time is over, or that it begins.
func (f *flow) part(t time.Duration) {
	if f.parts.next == 0 {
		f.before = threadCPU()
	}
	f.parts.note(t-f.from, f.received.Messages)
}

// message gives the memory of a message, and what frees it. As qperf's it is not written to (datagrams' headers
// are), so that the kernel copies its one page of zeros: the less the engine itself costs, the more of what is
// measured is the network's.
func (f *flow) message() (b []byte, free func()) {
	b, err := unix.Mmap(-1, 0, f.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return make([]byte, f.size), func() {}
	}
	return b, func() { _ = unix.Munmap(b) }
}

func sendStream(f *flow) {
	b, free := f.message()
	defer free()
	for f.writeStream(b) && f.count(&f.sent, f.size, f.now()) {
	}
}

func receiveStream(f *flow) {
	b := make([]byte, f.size)
	for f.readStream(b) && f.count(&f.received, f.size, f.now()) {
	}
}

// pingStream sends a message and waits for its like. One reading of the clock serves as
// the end of one round and the start of the next.
func pingStream(f *flow) {
	b := make([]byte, f.size)
	f.ping.rtt = newRTT()
	for start := f.now(); ; {
		if !f.writeStream(b) || !f.count(&f.sent, f.size, start) || !f.readStream(b) {
			return
		}
		t := f.now()
		if !f.count(&f.received, f.size, t) {
			return
		}
		f.roundTrip(start, t)
		start = t
	}
}

func (f *flow) roundTrip(start, end time.Duration) {
	if start >= f.from {
		_ = f.ping.rtt.RecordValue(int64(end - start)) // beyond the histogram's minute: cannot be
	}
}

func echoStream(f *flow) {
	b := make([]byte, f.size)
	for f.readStream(b) && f.count(&f.received, f.size, f.now()) {
		if !f.writeStream(b) || !f.count(&f.sent, f.size, f.now()) {
			return
		}
	}
}
