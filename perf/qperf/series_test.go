package qperf

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestRecorder(t *testing.T) {
	r := newRecorder()
	for i := range 1000 { // a message each millisecond, but for a stall from 250 to 449
		if at := time.Duration(i) * time.Millisecond; i < 250 || i >= 450 {
			n := uint64(i)
			if i >= 450 {
				n -= 200
			}
			r.note(at, n)
		}
	}
	r.note(time.Second, 800)
	s := r.series()
	if s.Every != 0.1 || !slices.Equal(s.Messages, []uint64{100, 100, 50, 0, 50, 100, 100, 100, 100, 100}) {
		t.Errorf("%+v", s)
	}
	long := newRecorder()
	for i := range 3600 * 10 {
		long.note(time.Duration(i+1)*100*time.Millisecond, uint64(i+1))
	}
	s = long.series()
	if n := len(s.Messages); n < seriesMost/2 || n >= seriesMost || s.Every*float64(n) > 3600 || s.Every*float64(n+1) < 3600 {
		t.Errorf("an hour: %d parts of %g s", n, s.Every)
	}
	for _, n := range s.Messages {
		if float64(n) != math.Round(10*s.Every) {
			t.Fatalf("%d messages in %g s", n, s.Every)
		}
	}
	r.add(r)
	if s := r.series(); s.Messages[2] != 100 || len(s.Messages) != 10 {
		t.Errorf("twice: %+v", s)
	}
	if (&recorder{}).series() != nil {
		t.Error("a series of nothing")
	}
}

// The parts of a test are as long as they say, and make up the whole.
func TestSeries(t *testing.T) {
	port := ourServer(t, nil)
	for _, test := range []Test{TCPBandwidth, TCPLatency, UDPBandwidth, UDPLatency, TCPConnect, TCPStreams, UDPPackets} {
		r, err := Run(t.Context(), test, Options{Server: "127.0.0.1", Port: port, Time: 300 * time.Millisecond, Warmup: 50 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		all := r.Remote.Received.Messages
		if test.Latency() || test == TCPConnect {
			all = r.Local.Received.Messages
		}
		if s := r.Series; s == nil || s.Every != 0.1 || len(s.Messages) != 3 || s.Messages[0]+s.Messages[1]+s.Messages[2] != all {
			t.Errorf("%s: %+v, %d messages in all", test, s, all)
			continue
		}
		if r.Loss != nil && r.Loss.Lost > 0 && test.Latency() {
			continue // its figure leaves out the time that was waited for these
		}
		mean := 0.0
		for _, n := range r.Series.Messages {
			v, _ := r.Part(n)
			if test.Latency() {
				v = 1 / v
			}
			mean += v / 3
		}
		if test.Latency() {
			mean = 1 / mean
		}
		if q := mean / r.Value(); q < 0.9 || q > 1.1 {
			t.Errorf("%s: by its parts %g, by itself %g", test, mean, r.Value())
		}
	}
	for _, test := range []Test{UDPOpen, Rest} {
		if r, err := Run(t.Context(), test, Options{Server: "127.0.0.1", Port: port, Time: 200 * time.Millisecond}); err != nil || r.Series != nil {
			t.Errorf("%s: %+v, %v", test, r.Series, err)
		}
	}
}
