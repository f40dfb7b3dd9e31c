package qperf

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestSparing: where calls are short, few of them read the time, but near an end of the test each does, and so do long ones.
func TestSparing(t *testing.T) {
	f := &flow{until: time.Hour, stop: &atomic.Bool{}}
	at := func(d time.Duration) { f.base = time.Now().Add(-d) }
	readings := func(c *sparing, step time.Duration) (n int) {
		before := c.t
		for i := range 90 {
			at(time.Minute + time.Duration(i)*step)
			if now := c.now(); now != before {
				n, before = n+1, now
			}
		}
		return n
	}
	c := &sparing{f: f}
	at(time.Minute)
	first := c.now()
	if n := readings(c, 10*time.Microsecond); n < 8 || n > 15 {
		t.Errorf("90 calls of 10 us: %d readings, want one in nine", n)
	}
	if n := readings(&sparing{f: f, t: first}, time.Millisecond); n < 80 {
		t.Errorf("90 calls of 1 ms: %d readings", n)
	}
	for name, end := range map[string]func(){"start": func() { f.from = time.Minute + 2*time.Millisecond }, "end": func() { f.from, f.until = 0, time.Minute+2*time.Millisecond }} {
		end()
		if n := readings(&sparing{f: f, t: first}, 10*time.Microsecond); n < 89 {
			t.Errorf("90 calls of 10 us near the %s: %d readings", name, n)
		}
	}
}
