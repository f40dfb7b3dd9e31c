package qperf

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// short is a test that a healthy server answers at once.
func short(port int) error {
	_, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: port, Time: 100 * time.Millisecond, Timeout: 2 * time.Second})
	return err
}

func dial(t *testing.T, port int) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func plainRequest(test Test, port int) request {
	return request{Major: verMaj, Minor: verMin, Inc: verInc, Index: forms[test].index, MsgSize: uint32(test.DefaultSize()),
		Port: uint32(port), Time: 1, Timeout: 5}
}

// TestServer_doesNotWedge does to the server what blocks the real one for seconds or for
// ever, and then asks for a test, which must be served sooner than the real one serves any.
func TestServer_doesNotWedge(t *testing.T) {
	data := freePort(t)
	cases := map[string]func(t *testing.T, port int){
		"probe": func(t *testing.T, port int) { dial(t, port).Close() },
		"silent": func(t *testing.T, port int) {
			dial(t, port)
		},
		"half a request": func(t *testing.T, port int) {
			_, _ = dial(t, port).Write(plainRequest(TCPLatency, 0).encode()[:50])
		},
		"no data connection": func(t *testing.T, port int) {
			_, _ = dial(t, port).Write(plainRequest(TCPLatency, 0).encode())
		},
		"killed before the data connection, on the port that the next wants": func(t *testing.T, port int) {
			c := dial(t, port)
			_, _ = c.Write(plainRequest(TCPLatency, data).encode())
			_, _ = io.ReadFull(c, make([]byte, portSize))
			c.Close()
		},
		"no synchronization before": func(t *testing.T, port int) {
			c := dial(t, port)
			_, _ = c.Write(plainRequest(TCPLatency, 0).encode())
			b := make([]byte, portSize)
			_, _ = io.ReadFull(c, b)
			dial(t, int(binary.LittleEndian.Uint32(b)))
		},
		"killed in the middle": func(t *testing.T, port int) {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			_, err := Run(ctx, UDPLatency, Options{Server: "127.0.0.1", Port: port, Time: time.Hour})
			if err == nil {
				t.Error("an hour passed in 200 ms")
			}
		},
		"no end asked for, and gone": func(t *testing.T, port int) {
			req := plainRequest(UDPBandwidth, 0)
			req.Time = 0
			c := dial(t, port)
			_, _ = c.Write(append(req.encode(), syncBefore...))
			_, _ = io.ReadFull(c, make([]byte, portSize+len(syncBefore)))
			c.Close()
		},
		"rubbish": func(t *testing.T, port int) {
			_, _ = dial(t, port).Write(bytes.Repeat([]byte{0xff}, 300))
		},
	}
	for name, misuse := range cases {
		t.Run(name, func(t *testing.T) {
			port := ourServer(t, nil)
			misuse(t, port)
			start := time.Now()
			_, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: port, DataPort: data, Time: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(start); took > 4*time.Second {
				t.Errorf("served after %s", took)
			}
		})
	}
}

// TestServer_afterSyncMissing: a client that has its results and stays must not hold the next.
func TestServer_afterSyncMissing(t *testing.T) {
	port := ourServer(t, nil)
	c := dial(t, port)
	_, _ = c.Write(append(plainRequest(UDPLatency, 0).encode(), syncBefore...))
	if _, err := io.ReadFull(c, make([]byte, portSize+len(syncBefore)+statSize)); err != nil {
		t.Fatal(err)
	}
	if err := short(port); err != nil {
		t.Error(err)
	}
}

// TestServer_parallelClients: all are served; one measurement at a time, unless told otherwise.
func TestServer_parallelClients(t *testing.T) {
	const clients, length = 6, 400 * time.Millisecond
	for parallel, atLeast := range map[int]time.Duration{1: clients * length, clients: length} {
		t.Run(strconv.Itoa(parallel), func(t *testing.T) {
			port := ourServer(t, func(c *ServerConfig) { c.Parallel = parallel })
			start := time.Now()
			var all sync.WaitGroup
			for i := range clients {
				all.Go(func() {
					r, err := Run(context.Background(), Tests[i%4], Options{Server: "127.0.0.1", Port: port, Time: length})
					if err != nil {
						t.Error(err)
					} else if r.Value() == 0 {
						t.Errorf("%s measured nothing", r.Test)
					}
				})
			}
			all.Wait()
			if took := time.Since(start); took < atLeast || parallel > 1 && took >= clients*length {
				t.Errorf("%d clients of %s, %d at once, took %s", clients, length, parallel, took)
			}
		})
	}
}

// TestServer_busy: who cannot have his turn in time hears why.
func TestServer_busy(t *testing.T) {
	port := ourServer(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan struct{})
	go func() {
		defer close(first)
		_, _ = Run(ctx, TCPLatency, Options{Server: "127.0.0.1", Port: port, Time: time.Minute})
	}()
	time.Sleep(100 * time.Millisecond)
	_, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: port, Time: time.Second, Timeout: time.Second})
	if err == nil || !strings.Contains(err.Error(), "server busy") {
		t.Errorf("second client: %v", err)
	}
	cancel()
	<-first
}

func TestServer_refusals(t *testing.T) {
	port := ourServer(t, nil)
	for want, change := range map[string]func(*request){
		"upgrade qperf on server from 0.4.11 to 0.5.0": func(r *request) { r.Minor, r.Inc = 5, 0 },
		"upgrade qperf on client from 0.3.0 to 0.4.11": func(r *request) { r.Minor, r.Inc = 3, 0 },
		"bad request index: 999":                       func(r *request) { r.Index = 999 },
		"bad request index: 1":                         func(r *request) { r.Index = 1 },
		"tcp_lat: msg_size 1073741824: not from 1 to":  func(r *request) { r.MsgSize = 1 << 30 },
		"data port 70000: no such port":                func(r *request) { r.Port = 70000 },
	} {
		c := dial(t, port)
		req := plainRequest(TCPLatency, 0)
		change(&req)
		_, _ = c.Write(req.encode())
		deadline(c, 2*time.Second)
		if text, err := io.ReadAll(c); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("got %q, %v, want %q", text, err, want)
		}
	}
}

// TestExtension: parts of a second, a warm-up outside the clock, and an account of each datagram.
func TestExtension(t *testing.T) {
	port := ourServer(t, nil)
	for _, test := range Tests {
		for _, length := range []time.Duration{250 * time.Millisecond, 500 * time.Millisecond} {
			agree := false
			for try := 0; try < 4 && !agree; try++ {
				r := extended(t, port, test, length)
				agree = (!test.Latency() || agrees(t, r)) && inTime(r)
			}
			if !agree {
				t.Errorf("%s for %s: in none of four tries the histogram's mean and qperf's figure are the same, and all CPU time of the clock's", test, length)
			}
		}
	}
}

// inTime tells whether the CPU's clocks and the engine's time are of the time that is counted alone, without warm-up and
// without the wait for the last replies. They may be late where the machine is busy.
func inTime(r *Result) bool {
	const late = 0.15 // seconds; each of the two is longer, or seen beside the warm-up
	all := 0.0
	for i := User; i < clocks; i++ {
		all += float64(r.Local.End[i]-r.Local.Start[i]) / float64(r.Local.TicksPerSecond)
	}
	threads := float64(max(1, r.Streams))
	if r.Test == UDPOpen {
		threads = 2
	}
	engine := r.Engine.Local.User + r.Engine.Local.System
	return all/float64(r.Local.CPUs) < r.Time+late && engine < threads*(r.Time+0.05)
}

// The open loop waits for the last replies when its time is over, and that is of no figure.
func TestOpen_cpuOfItsTime(t *testing.T) {
	port := ourServer(t, nil)
	for range 4 {
		r, err := Run(t.Context(), UDPOpen, Options{Server: "127.0.0.1", Port: port, Time: 250 * time.Millisecond, Warmup: 400 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if inTime(r) {
			return
		}
	}
	t.Error("in none of four tries all CPU time was of the clock's")
}

func extended(t *testing.T, port int, test Test, length time.Duration) *Result {
	t.Helper()
	const warmup = 100 * time.Millisecond
	start := time.Now()
	r, err := Run(context.Background(), test, Options{Server: "127.0.0.1", Port: port, Time: length, Warmup: warmup})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < length+warmup {
		t.Errorf("%s of %s after %s took %s only", test, length, warmup, took)
	}
	for _, side := range []CPU{r.Figures.Local, r.Figures.Remote} {
		if side.RealTime < length.Seconds()*0.999 || side.RealTime > length.Seconds()*1.001 {
			t.Errorf("%s: clock of %g s for %s", test, side.RealTime, length)
		}
	}
	if e := r.Engine; e == nil || e.Local.User+e.Local.System <= 0 || e.Remote.User+e.Remote.System <= 0 {
		t.Errorf("%s: engine %+v", test, e)
	}
	if test == UDPBandwidth && (!r.Loss.Exact || r.MsgSize != FittingDatagram) {
		t.Errorf("udp_bw: %+v, datagrams of %d", r.Loss, r.MsgSize)
	}
	return r
}

// agrees holds the histogram against what it cannot be, and tells whether its mean and elapsed / messages, two ways to
// the same figure, are the same. They are not where a busy machine holds up the last message of a test: that has no
// end, and so no place in the histogram.
func agrees(t *testing.T, r *Result) bool {
	t.Helper()
	d := r.Latency
	if !(d.Min > 0 && d.Min <= d.P50 && d.P50 <= d.P90 && d.P90 <= d.P99 && d.P99 <= d.P999 && d.P999 <= d.Max) {
		t.Errorf("%s: %+v", r.Test, d)
	}
	if d.Count > r.Local.Received.Messages || d.Count+2 < r.Local.Received.Messages {
		t.Errorf("%s: %d in the histogram of %d", r.Test, d.Count, r.Local.Received.Messages)
	}
	if all := 2 * d.Mean * float64(d.Count); all > 1.01*r.Time {
		t.Errorf("%s: round trips of %g s in %g s, one after the other", r.Test, all, r.Time)
	}
	waited := 0.0 // for datagrams that were lost
	if r.Loss != nil {
		waited = r.Loss.Wait
	}
	q := d.Mean / r.Value()
	return q > 0.9 && q < 1.1 && 2*d.Mean*float64(d.Count)+waited > 0.9*r.Time
}

// TestClient_noServer must say so in time.
func TestClient_noServer(t *testing.T) {
	start := time.Now()
	_, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: freePort(t), Wait: 300 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1: failed to connect") || time.Since(start) > 4*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}

// TestClient_serverGone: a server that dies in the middle ends the test, with an error and in time.
func TestClient_serverGone(t *testing.T) {
	for _, test := range Tests {
		s, err := Listen(ServerConfig{Port: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(200*time.Millisecond, cancel)
		served := make(chan error)
		go func() { served <- s.Serve(ctx) }()
		start := time.Now()
		if _, err := Run(context.Background(), test, Options{Server: "127.0.0.1", Port: int(s.Addr().Port()), Time: 600 * time.Millisecond}); err == nil {
			t.Errorf("%s: no error though the server went away", test)
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("%s: %s", test, took)
		}
		<-served
	}
}

// TestClient_wrongServer: something else listens there.
func TestClient_wrongServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			c.Close()
		}
	}()
	if _, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: int(addrOf(l.Addr()).Port())}); err == nil {
		t.Error("an HTTP server passed for qperf")
	}
}
