package qperf

import (
	"encoding/binary"
	"runtime"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

const (
	grace    = 200 * time.Millisecond // that a reply of udp_open may take at the end
	spinning = 60 * time.Microsecond  // before a moment: asleep, the kernel would wake the thread too late
)

// Open is how well udp_open kept its rate, which the network has no part in.
type Open struct {
	Rate    float64 `json:"rate"`     // messages/s asked for
	LateP99 float64 `json:"late_p99"` // seconds that a send came after its moment, inside the figures of latency
	LateMax float64 `json:"late_max"`
}

// A pacer gives each message its moment: number n is due n intervals after the start, whatever happened to the others.
type pacer struct {
	f        *flow
	interval float64 // nanoseconds
}

func (f *flow) newPacer() pacer {
	rate := f.rate
	if rate <= 0 {
		rate = defaultRate
	}
	// Without this the kernel may add 50 us to every sleep (prctl(2), PR_SET_TIMERSLACK).
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return pacer{f, 1e9 / rate}
}

// await sleeps until message n is due and gives that moment.
func (p pacer) await(n uint64) time.Duration {
	due := time.Duration(float64(n) * p.interval)
	for {
		switch left := due - p.f.now(); {
		case left <= 0:
			return due
		case left > spinning:
			ts := unix.NsecToTimespec(int64(left - spinning))
			_ = unix.Nanosleep(&ts, nil)
		}
	}
}

// sendPaced is sendDatagrams at a fixed rate: what could not be sent in time is sent as soon as it can.
func sendPaced(f *flow) {
	b, free := f.message()
	defer free()
	p := f.newPacer()
	for seq := uint64(0); ; seq++ {
		due := p.await(seq)
		if f.past(f.now()) {
			return
		}
		f.stamp(b, seq, due >= f.from)
		if _, err := write(f.fd, b); err != nil {
			if !f.wait(err, &f.sent) {
				return
			}
			continue
		}
		if due < f.from || f.past(due) {
			continue
		}
		if f.own {
			f.account.counted++
		}
		f.count(&f.sent, f.size, due)
	}
}

// openDatagrams is the open loop: one thread sends at the fixed rate, another takes the
// replies, so neither a slow reply nor a lost one holds the next message up. A ping-pong under
// a stall of 100 ms has one bad value; here each message that was due in it has its own.
func openDatagrams(f *flow) {
	f.ping.rtt = newRTT()
	p := f.newPacer()
	replies := *f
	done := make(chan struct{})
	go func() { defer close(done); replies.collect(p.interval) }()
	f.sendOpen(p)
	<-done
	f.account, f.received = replies.account, replies.received
	f.engine.add(replies.engine)
}

func (f *flow) sendOpen(p pacer) {
	b, free := f.message()
	defer free()
	late := hdrhistogram.New(1, int64(time.Minute), 3)
	for seq := uint64(0); ; seq++ {
		due := p.await(seq)
		if f.past(due) {
			break
		}
		f.stamp(b, seq, due >= f.from)
		sent := f.now()
		if _, err := write(f.fd, b); err != nil && !f.wait(err, &f.sent) {
			break
		}
		if f.count(&f.sent, f.size, due) && due >= f.from {
			_ = late.RecordValue(int64(sent - due))
		}
	}
	f.open = &Open{Rate: 1e9 / p.interval, LateP99: float64(late.ValueAtQuantile(99)) / 1e9, LateMax: float64(late.Max()) / 1e9}
}

// collect takes replies until some time after the last message.
func (f *flow) collect(interval float64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var engine span
	b := make([]byte, f.size+1)
	for f.now() < f.until+grace && !f.stop.Load() {
		n, err := read(f.fd, b)
		t := f.now()
		engine.at(f, t)
		if err != nil || f.stray(b, n) || b[12] != 1 {
			continue
		}
		seq := binary.LittleEndian.Uint64(b)
		before := f.account.unique
		if f.account.note(seq); f.account.unique == before {
			continue
		}
		f.received.Bytes += uint64(n)
		f.received.Messages++
		_ = f.ping.rtt.RecordValue(int64(t) - int64(float64(seq)*interval))
	}
	f.engine = engine.used()
}

// A span is what a thread has used when the counted time began and when it was over, as far as it went.
type span struct{ start, end *CPUTime }

// at is told the time after each call.
func (w *span) at(f *flow, t time.Duration) {
	if w.start != nil && (w.end != nil || t < f.until) || t < f.from {
		return
	}
	now := threadCPU()
	if w.start == nil {
		w.start = &now
	} else {
		w.end = &now
	}
}

func (w *span) used() CPUTime {
	if w.start == nil {
		return CPUTime{}
	}
	if w.end == nil {
		return threadCPU().minus(*w.start)
	}
	return w.end.minus(*w.start)
}

// rest does nothing, for idle.
func rest(f *flow) {
	for !f.past(f.now()) {
		time.Sleep(tick)
	}
}
