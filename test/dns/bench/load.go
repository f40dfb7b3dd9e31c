package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/test/dns/peer"
)

// load asks a server as fast as it answers, and then at a fixed rate.
func (b *bench) load(ctx context.Context, s *peer.Server, what string, round int) (figure, error) {
	f := figure{Server: s.Name, Questions: what, Round: round}
	before, err := cpuSeconds(s.Cmd.Process.Pid)
	if err != nil {
		return f, err
	}
	out, err := b.dnsperf(ctx, s, what, "-c", "8", "-T", "2", "-q", "64")
	if err != nil {
		return f, err
	}
	after, err := cpuSeconds(s.Cmd.Process.Pid)
	if err != nil {
		return f, err
	}
	if f.PerSecond, err = number(out, `Queries per second:\s+([\d.]+)`); err != nil {
		return f, err
	}
	done, err := number(out, `Queries completed:\s+(\d+)`)
	if err != nil {
		return f, err
	}
	lost, err := number(out, `Queries lost:\s+(\d+)`)
	if err != nil {
		return f, err
	}
	f.PerCPU, f.Asks, f.Lost = done/(after-before), int(done), int(lost)
	out, err = b.dnsperf(ctx, s, what, "-c", "8", "-T", "1", "-Q", fmt.Sprint(b.rate), "-v")
	if err != nil {
		return f, err
	}
	f.P50, f.P99, err = percentiles(out)
	return f, err
}

func (b *bench) dnsperf(ctx context.Context, s *peer.Server, what string, args ...string) ([]byte, error) {
	host, port, err := net.SplitHostPort(s.Addr)
	if err != nil {
		return nil, err
	}
	args = append(args, "-s", host, "-p", port, "-d", b.files[what], "-l", fmt.Sprint(int(b.length.Seconds())))
	out, err := exec.CommandContext(ctx, "dnsperf", args...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("dnsperf: %w: %.1000s", err, out)
	}
	return out, nil
}

func number(out []byte, expr string) (float64, error) {
	m := regexp.MustCompile(expr).FindSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("dnsperf said no %q: %.1000s", expr, out)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}

// percentiles reads what dnsperf says of each question: "> NOERROR name type
// seconds". All of them must have been answered well.
func percentiles(out []byte) (p50, p99 float64, err error) {
	var took []float64
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 5 || f[0] != ">" {
			continue
		}
		v, err := strconv.ParseFloat(f[4], 64)
		if err != nil || f[1] != "NOERROR" {
			return 0, 0, fmt.Errorf("dnsperf: %q", sc.Text())
		}
		took = append(took, 1e6*v)
	}
	if len(took) == 0 {
		return 0, 0, errors.New("dnsperf said nothing of any question")
	}
	slices.Sort(took)
	return took[len(took)/2], took[len(took)*99/100], nil
}

// cpuSeconds is the time that a process has used (proc_pid_stat(5), fields 14
// and 15, in the ticks of 10 ms that all Linux architectures report).
func cpuSeconds(pid int) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks float64
	for _, s := range f[11:13] {
		v, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, err
		}
		ticks += v
	}
	return ticks / 100, nil
}

func (b *bench) remember(s *peer.Server, when string) {
	m := memory{When: when}
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "VmRSS: %d kB", &m.Resident)
		_, _ = fmt.Sscanf(line, "VmHWM: %d kB", &m.Highest)
	}
	b.report.Memory[s.Name] = append(b.report.Memory[s.Name], m)
	say("%s: %d MiB %s, at most %d", s.Name, m.Resident>>10, when, m.Highest>>10)
}
