package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// perf runs the program with these words after "perf".
func perfVerb(ctx context.Context, words ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = run(ctx, append([]string{"podlane", "perf"}, words...), strings.NewReader(""), &out, &errs)
	return status, out.String(), errs.String()
}

func TestPerf_serverAndClient(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"podlane", "perf", "server", "-lp", port}, nil, io.Discard, io.Discard)
	}()
	status, out, errs := perfVerb(ctx, "client", "127.0.0.1", "-lp", port, "-t", "100ms", "-v", "tcp_lat", "conf")
	if status != 0 || errs != "" || !strings.HasPrefix(out, "tcp_lat:\n    latency ") || !strings.Contains(out, "rem_qperf  =  0.4.11") {
		t.Errorf("status %d\n%s%s", status, out, errs)
	}
	status, out, _ = perfVerb(ctx, "client", "--json", "-t", "100ms", "--lp", port, "127.0.0.1", "udp_lat", "udp_bw")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var result struct{ Test string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &result); status != 0 || err != nil || len(lines) != 2 || result.Test != "udp_bw" {
		t.Errorf("status %d, %v\n%s", status, err, out)
	}
	cancel()
	select {
	case status := <-done:
		if status != 0 {
			t.Errorf("the server ended with status %d", status)
		}
	case <-time.After(5 * time.Second):
		t.Error("the server did not end")
	}
}

func TestPerf_badCommandLines(t *testing.T) {
	for _, line := range []string{"client", "client HOST", "client HOST tcp_xx", "client HOST -t x tcp_bw", "server extra", "server --nope", "server --addr nonsense", "server --lp 70000"} {
		if status, out, errs := perfVerb(context.Background(), strings.Fields(line)...); status == 0 || out != "" || strings.Count(errs, "\n") != 1 {
			t.Errorf("perf %s: status %d, stdout %q, stderr %q", line, status, out, errs)
		}
	}
	for _, line := range []string{"server --help", "client --help", "client -h", ""} {
		if status, out, _ := perfVerb(context.Background(), strings.Fields(line)...); status != 0 || !strings.Contains(out, "Usage:") {
			t.Errorf("perf %s: status %d, %q", line, status, out)
		}
	}
}

func TestOverlayPackets(t *testing.T) {
	const devices = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       7    0    0    0     0          0         0        0       7    0    0    0     0       0          0
pl-vxlan:  1000      10    0    0    0     0          0         0     2000      20    0    0    0     0       0          0
`
	if n, err := overlayPackets(devices); n != 30 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := overlayPackets(strings.ReplaceAll(devices, " 10 ", " ten ")); err == nil {
		t.Error("ten is a number")
	}
}
