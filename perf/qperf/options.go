package qperf

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Options say what to measure. The zero value of each means its default.
type Options struct {
	Server   string        // host name or address
	Port     int           // control port; DefaultPort
	DataPort int           // 0 = the server picks
	MsgSize  int           // bytes; 0 = the test's own, for udp_bw what fits the way
	Time     time.Duration // DefaultTime; parts of a second only between two of our own kind
	Timeout  time.Duration // of each step of the control connection; DefaultTimeout, whole seconds on the wire
	Wait     time.Duration // for the server to be there; DefaultTimeout, negative = one attempt
	SockBuf  int           // bytes, of the server's socket; 0 = as it is
	Warmup   time.Duration // traffic before the clock; needs a server of our own kind
	Plain    bool          // be exactly qperf: no extension, 32 KiB datagrams
	Rate     float64       // messages/s; 0 = as fast as it goes, of udp_open 1,000. Of udp_max the highest to try
	Pace     float64       // bytes/s of all TCP streams together; 0 = as fast as it goes
	Streams  int           // of tcp_streams; 0 = 4
	Floor    bool          // conf: measure this engine's own latency too
}

// ErrPlainServer is a server without the extension that was asked for part of a second.
var ErrPlainServer = errors.New("the server speaks plain qperf: it measures whole seconds only, from 1 s")

// errNeedsOwn is a test that the server does not know.
var errNeedsOwn = errors.New("the server speaks plain qperf: this test needs a podlane server")

const (
	defaultRate    = 1000
	maxRate        = 1e8
	defaultStreams = 4
)

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, to time.Duration) {
		if *d == 0 {
			*d = to
		}
	}
	def(&o.Time, DefaultTime)
	def(&o.Timeout, DefaultTimeout)
	def(&o.Wait, DefaultTimeout)
	if o.Streams == 0 {
		o.Streams = defaultStreams
	}
	if o.Port == 0 {
		o.Port = DefaultPort
	}
	return o
}

func (o Options) check(t Test) error {
	_, known := forms[t]
	switch {
	case !known:
		return fmt.Errorf("test %q: no such test", t)
	case o.Server == "":
		return errors.New("no server given")
	case o.Port < 1 || o.Port > 65535:
		return fmt.Errorf("control port %d: not from 1 to 65535", o.Port)
	case o.DataPort < 0 || o.DataPort > 65535:
		return fmt.Errorf("data port %d: not from 0 to 65535", o.DataPort)
	case o.Time < tick || o.Time > maxTest:
		return fmt.Errorf("time %s: not from %s to %s", o.Time, tick, maxTest)
	case o.Plain && (o.Time < time.Second || o.Warmup > 0):
		return ErrPlainServer
	case o.Warmup < 0 || o.Warmup > maxTest:
		return fmt.Errorf("warm-up %s: not from 0 to %s", o.Warmup, maxTest)
	case o.Plain && forms[t].own:
		return fmt.Errorf("%s: %w", t, errNeedsOwn)
	case o.Rate < 0 || o.Rate > maxRate:
		return fmt.Errorf("rate %g: not from 0 to %g a second", o.Rate, maxRate)
	case o.Pace < 0 || o.Pace > math.MaxInt32:
		return fmt.Errorf("pace %g: not from 0 to %d bytes a second", o.Pace, math.MaxInt32)
	case o.Streams < 0 || o.Streams > MaxStreams:
		return fmt.Errorf("%d streams: not from 1 to %d", o.Streams, MaxStreams)
	case o.SockBuf < 0 || o.SockBuf > maxStream:
		return fmt.Errorf("sock_buf_size %d: not from 0 to %d", o.SockBuf, maxStream)
	}
	if o.MsgSize != 0 {
		return t.checkSize(o.MsgSize)
	}
	return nil
}
