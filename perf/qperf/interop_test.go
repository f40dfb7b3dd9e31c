package qperf

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var families = map[string]string{"ipv4": "127.0.0.1", "ipv6": "::1"}

func needsQperf(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qperf"); err != nil {
		t.Skipf("needs qperf, the real one: %v", err)
	}
}

// ourServer serves on a free port of every address.
func ourServer(t testing.TB, change func(*ServerConfig)) int {
	t.Helper()
	config := ServerConfig{Port: -1, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	if change != nil {
		change(&config)
	}
	s, err := Listen(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("server did not end within 5 s")
		}
	})
	return int(s.Addr().Port())
}

// realServer runs Debian's qperf and waits until it listens. It listens on IPv6 only where there is one.
func realServer(t testing.TB) int {
	t.Helper()
	needsQperf(t)
	port := freePort(t)
	cmd := exec.Command("qperf", "-lp", strconv.Itoa(port))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if r, err := Run(context.Background(), Conf, Options{Server: "127.0.0.1", Port: port, Wait: -1}); err == nil && r.Conf.Remote.Qperf == Version {
			return port
		}
		if time.Now().After(end) {
			t.Fatal("the real qperf server did not come up")
		}
	}
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int(addrOf(l.Addr()).Port())
}

func hasFamily(t testing.TB, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		t.Skipf("needs %s: %v", addr, err)
	}
	l.Close()
}

// qperf runs the real client and gives what it prints.
func qperf(t testing.TB, args ...string) string {
	t.Helper()
	needsQperf(t)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qperf", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qperf %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func checkResult(t *testing.T, r *Result) {
	t.Helper()
	if r.Test == Conf {
		if r.Conf.Remote.Node == "" || r.Conf.Remote != r.Conf.Local {
			t.Errorf("conf: both ends are this machine, but %+v and %+v", r.Conf.Local, r.Conf.Remote)
		}
		return
	}
	if v := r.Value(); r.Test.Latency() && (v < 1e-6 || v > 0.1) || !r.Test.Latency() && v < 1e6 {
		t.Errorf("%s: implausible on loopback: %g %s", r.Test, v, r.Test.Unit())
	}
	if got := r.Figures.Remote.RealTime; got < r.Time*0.99 || got > r.Time*1.05 {
		t.Errorf("%s: server measured %g s of %g s", r.Test, got, r.Time)
	}
	if r.Test == TCPLatency {
		if l, m := r.Local.Received.Messages, r.Remote.Received.Messages; l+2 < m || m+2 < l {
			t.Errorf("tcp_lat: client received %d, server %d messages", l, m)
		}
	}
	if r.Test == TCPBandwidth && r.Local.Sent.Bytes < r.Remote.Received.Bytes/2 {
		t.Errorf("tcp_bw: sent %d, received %d bytes", r.Local.Sent.Bytes, r.Remote.Received.Bytes)
	}
}

// TestInterop_ourClient runs every test to the real server and to our own.
func TestInterop_ourClient(t *testing.T) {
	servers := map[string]func(testing.TB) int{
		"real": realServer,
		"own":  func(t testing.TB) int { return ourServer(t, nil) },
	}
	for kind, start := range servers {
		t.Run(kind, func(t *testing.T) {
			port := start(t)
			for family, addr := range families {
				for _, test := range append([]Test{Conf}, Tests...) {
					t.Run(family+"/"+string(test), func(t *testing.T) {
						hasFamily(t, addr)
						o := Options{Server: addr, Port: port, Time: time.Second, DataPort: freePort(t)}
						if kind == "own" {
							o.Time = 300 * time.Millisecond
						}
						r, err := Run(context.Background(), test, o)
						if err != nil {
							t.Fatal(err)
						}
						checkResult(t, r)
						if r.Test != Conf && r.Extended != (kind == "own") {
							t.Errorf("extended %v with the %s server", r.Extended, kind)
						}
					})
				}
			}
		})
	}
}

// TestInterop_ourServer runs the real client to our server, and compares the form of what
// it prints with what ours prints of the same tests.
func TestInterop_ourServer(t *testing.T) {
	needsQperf(t)
	port := ourServer(t, nil)
	for _, c := range []struct{ addr, detail, tests string }{
		{"127.0.0.1", "-v", "tcp_bw tcp_lat udp_bw udp_lat conf"},
		{"::1", "-vv", "tcp_bw tcp_lat udp_bw udp_lat conf"},
		{"127.0.0.1", "", "udp_bw tcp_lat"},
		{"127.0.0.1", "-un -vvs", "tcp_bw"},
	} {
		t.Run(c.addr+" "+c.detail, func(t *testing.T) {
			hasFamily(t, c.addr)
			line := fmt.Sprintf("%s -lp %d -ip %d -t 1 -m 1400 %s %s", c.addr, port, freePort(t), c.detail, c.tests)
			theirs := qperf(t, strings.Fields(line)...)
			inv, err := ParseArgs(strings.Fields(line))
			if err != nil {
				t.Fatal(err)
			}
			var ours bytes.Buffer
			if err := inv.Run(context.Background(), &ours); err != nil {
				t.Fatal(err)
			}
			if a, b := shape(theirs), shape(ours.String()); a != b {
				t.Errorf("qperf's:\n%s\nours:\n%s", theirs, ours.String())
			}
		})
	}
}

var (
	figure  = regexp.MustCompile(`= +[0-9][0-9,.]* (?:[a-zA-Z%/]+(?: cpus)?)?`)
	maybe   = regexp.MustCompile(`(?m)^ +\S+_(cpus_(user|intr|kernel|iowait)|errors) .*\n`)
	padding = regexp.MustCompile(` +=`)
)

// shape leaves names, order, parameters and blanks; the figures themselves differ from run to
// run, and a line whose figure is 0 is not printed at all.
func shape(text string) string {
	text = maybe.ReplaceAllString(text, "")
	text = padding.ReplaceAllString(text, " =")
	text = figure.ReplaceAllStringFunc(text, func(s string) string {
		if strings.HasSuffix(s, " ") {
			return "= N "
		}
		return "= N unit"
	})
	return strings.ReplaceAll(text, "_msgs = N unit", "_msgs = N ") // a million or more has a unit
}

// TestForm is that of the same result, byte for byte, as the real client prints it: the
// counters come from its own output, so only the layout is ours.
func TestForm_byteForByte(t *testing.T) {
	const captured = "tcp_bw:\n" +
		"    bw              =   1.64 GB/sec\n" +
		"    msg_rate        =   25.1 K/sec\n" +
		"    port            =  4,001 \n" +
		"    send_cost       =   1.21 sec/GB\n" +
		"    recv_cost       =   1.21 sec/GB\n" +
		"    send_cpus_used  =    200 % cpus\n" +
		"    recv_cpus_used  =    200 % cpus\n"
	stat := Stat{CPUs: 2, TicksPerSecond: 100,
		Start: [clocks]uint64{0x6666beae, 0x93f1, 0, 0x2fb0, 0xce4a, 0x178, 0, 0x333, 0x2b2},
		End:   [clocks]uint64{0x6666bf76, 0x94a0, 0, 0x3040, 0xce4a, 0x178, 0, 0x382, 0x2b3}}
	local, remote := stat, stat
	local.Sent = Counters{Bytes: 50130 << 16, Messages: 50130}
	remote.Received = Counters{Bytes: 0xc3d00000, Messages: 50128}
	r := &Result{Test: TCPBandwidth, MsgSize: 65536, Port: 4001, Local: &local, Remote: &remote}
	r.Figures = figures(r)
	var out bytes.Buffer
	if err := r.WriteText(&out, Detail{Conf: 1, Stat: 1, Time: 1, Used: 1, Given: Given{Port: true}}); err != nil {
		t.Fatal(err)
	}
	if out.String() != captured {
		t.Errorf("got\n%s\nwant\n%s", out.String(), captured)
	}
}

// TestInterop_refusals: the real client must understand why our server says no.
func TestInterop_refusals(t *testing.T) {
	needsQperf(t)
	port := ourServer(t, nil)
	out, err := exec.Command("qperf", "127.0.0.1", "-lp", strconv.Itoa(port), "-t", "1", "-m", "70000", "udp_bw").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "server: ") {
		t.Errorf("70000-byte datagrams: %v\n%s", err, out)
	}
	if _, err := exec.Command("qperf", "127.0.0.1", "-lp", strconv.Itoa(port), "quit").CombinedOutput(); err == nil {
		t.Error("quit was obeyed")
	}
	if out := qperf(t, "127.0.0.1", "-lp", strconv.Itoa(port), "conf"); !strings.Contains(out, "rem_qperf  =  0.4.11") {
		t.Errorf("after the refusals:\n%s", out)
	}
}

// TestPlainServer: parts of a second are refused, and the real server is not left wedged.
func TestPlainServer(t *testing.T) {
	port := realServer(t)
	for _, test := range Tests {
		_, err := Run(context.Background(), test, Options{Server: "127.0.0.1", Port: port, Time: 500 * time.Millisecond})
		if err == nil || !strings.Contains(err.Error(), "plain qperf") {
			t.Errorf("%s for 500 ms to the real server: %v", test, err)
		}
	}
	if _, err := Run(context.Background(), TCPLatency, Options{Server: "127.0.0.1", Port: port, Time: time.Second}); err != nil {
		t.Errorf("the real server afterwards: %v", err)
	}
}

// TestUDPAnswersFromTheAddressAsked: every address of 127/8 is this machine's.
func TestUDPAnswersFromTheAddressAsked(t *testing.T) {
	port := ourServer(t, nil)
	r, err := Run(context.Background(), UDPLatency, Options{Server: "127.0.0.77", Port: port, Time: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if r.Loss.Lost > r.Loss.Sent/20 || r.Local.Received.Messages < 100 {
		t.Errorf("%d lost, %d received", r.Loss.Lost, r.Local.Received.Messages)
	}
	if want := netip.MustParseAddr("127.0.0.77"); r.Path.Data.Addr() != want || r.Path.PeerLocal.Addr() != want {
		t.Errorf("data went %+v", r.Path)
	}
	needsQperf(t)
	out := qperf(t, "127.0.0.77", "-lp", fmt.Sprint(port), "-t", "1", "-vvs", "udp_lat")
	if !strings.Contains(out, "loc_recv_msgs") {
		t.Errorf("the real client got no replies:\n%s", out)
	}
}
