package qperf

import (
	"strings"
	"testing"
	"time"
)

// The figures that the real qperf printed for crafted counters.
func TestFormat(t *testing.T) {
	for _, c := range []struct {
		style Style
		v     float64
		k     kind
		want  string
	}{
		{Style{}, 331e6, asBandwidth, "331 MB/sec"},
		{Style{}, 999.4e6, asBandwidth, "999 MB/sec"},
		{Style{}, 999.6e6, asBandwidth, "1,000 MB/sec"},
		{Style{}, 1234567890, asBandwidth, "1.23 GB/sec"},
		{Style{}, 9.996e9, asBandwidth, "10 GB/sec"},
		{Style{}, 1e15, asBandwidth, "1,000 TB/sec"},
		{Style{}, 5050, asRate, "5.05 K/sec"},
		{Style{}, 2.2054, asCost, "2.21 sec/GB"},
		{Style{}, 0.730, asCost, "730 ms/GB"},
		{Style{}, 1460000, asCost, "1,460,000 sec/GB"},
		{Style{}, 0.730, asCPU, "73 % cpus"},
		{Style{}, 0.735, asCPU, "73.5 % cpus"},
		{Style{}, 1.995, asCPU, "200 % cpus"},
		{Style{}, 10.0007e-6, asTime, "10 us"},
		{Style{}, 8.83e-6, asTime, "8.83 us"},
		{Style{Precision: 5, Bits: true}, 331234567, asBandwidth, "2.6499 Gb/sec"},
		{Style{Precision: -1}, 1.64e9, asBandwidth, "2 GB/sec"},
		{Style{}, 65536, asSize, "64 KiB (65,536)"},
		{Style{}, 1400, asSize, "1.4 KB"},
		{Style{}, 1, asSize, "1 bytes"},
		{Style{}, 326439, asCount, "326,439 "},
		{Style{}, 1.13e6, asCount, "1.13 million"},
		{Style{}, 4001, asCount, "4,001 "},
		{Style{Base: true}, 1234567890, asBandwidth, "1234567890 bytes/sec"},
		{Style{}, 2, asTime, "2 sec"},
		{Style{}, 0, asBandwidth, "0 bytes/sec"},
	} {
		n := c.style.format(c.v, c.k)
		got := n.digits + " " + n.unit
		if n.other != "" {
			got += " (" + n.other + ")"
		}
		if got != c.want {
			t.Errorf("%g: got %q, want %q", c.v, got, c.want)
		}
	}
}

func TestCPUText(t *testing.T) {
	cpus := func(lines ...string) string { return strings.Join(lines, "\n") + "\n" }
	for want, text := range map[string]string{
		"2 Cores: AMD EPYC 2.6GHz":       cpus("model name\t: AMD EPYC", "cpu MHz\t: 2596.1", "model name\t: AMD EPYC", "cpu MHz\t: 2596.1"),
		"Intel Xeon E5-2650 0 @ 2.00GHz": cpus("model name\t: Intel(R) Xeon(R) CPU E5-2650 0 @ 2.00GHz", "cpu MHz\t: 1999.9"),
		"2 Cores: Mixed CPUs":            cpus("model name\t: A", "cpu MHz\t: 1000.0", "model name\t: A", "cpu MHz\t: 1100.0"),
		"A 933MHz":                       cpus("model name\t: A", "cpu MHz\t: 933.5"),
		"4 Cores":                        cpus("processor\t: 0", "processor\t: 1", "processor\t: 2", "processor\t: 3"),
		"3 Cores: Mixed CPUs":            cpus("model name\t: A", "model name\t: A", "model name\t: B"),
		"2 Cores: Virtual 3.1GHz":        cpus("model name\t: Virtual Processor ", "cpu MHz\t: 3100.0", "model name\t: Virtual Processor ", "cpu MHz\t: 3100.0"),
	} {
		if got := cpuText(text); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestRequest_asCaptured(t *testing.T) {
	// qperf -v 127.0.0.1 -lp 4000 -ip 4001 tcp_bw
	want := make([]byte, requestSize)
	for at, b := range map[int]byte{2: 4, 4: 0x0b, 6: 8, 26: 1, 40: 0xa1, 41: 0x0f, 60: 2, 64: 5} {
		want[at] = b
	}
	c := &client{test: TCPBandwidth, options: Options{Plain: true, MsgSize: 65536, DataPort: 4001, Time: 2 * time.Second, Timeout: 5 * time.Second}}
	if got := c.request().encode(); string(got) != string(want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	ext := request{Extension: extension{On: true, Duration: 5e8, Warmup: 1e8, Nonce: 77}}
	if got := decodeRequest(ext.encode()); got != ext {
		t.Errorf("extension came back as %+v", got)
	}
}

func TestStat_clampsClocksThatRunBackwards(t *testing.T) {
	s := Stat{CPUs: 2, TicksPerSecond: 100, RemoteReceived: Counters{1, 2, 3}}
	s.Start[IOWait], s.End[IOWait], s.End[Real] = 500, 400, 200
	got, trailer := decodeStat(s.encode(7))
	if got.End[IOWait] != 500 || trailer != 7 || got.RemoteReceived != s.RemoteReceived {
		t.Errorf("%+v, trailer %d", got, trailer)
	}
	if c := cpu(&got); c.CPUTime != 0 || c.RealTime != 2 {
		t.Errorf("%+v", c)
	}
}

// Zero messages, zero time, nothing at all: no division by zero, no NaN in the output.
func TestFigures_nothingMeasured(t *testing.T) {
	for _, test := range Tests {
		r := &Result{Test: test, Local: &Stat{}, Remote: &Stat{}, Loss: &Loss{Lost: 1}, Latency: &Distribution{}}
		if f := figures(r); *f != (Figures{}) {
			t.Errorf("%s: %+v", test, f)
		}
	}
}

func TestAccount(t *testing.T) {
	var a account
	for _, seq := range []uint64{5, 6, 9, 7, 7, 9, 8, 5, 200000, 199999, 10, 70000 + 65536*3, 70001} {
		a.note(seq)
	}
	// 5 6 9 7 8 200000 199999 10 266608 70001 are different; 10 and 70001 came too late to be told from a repetition.
	if a.unique != 10 || a.duplicates != 3 || a.reordered != 5 {
		t.Errorf("%d unique, %d duplicates, %d reordered", a.unique, a.duplicates, a.reordered)
	}
}

func TestPatience(t *testing.T) {
	p := patience{rto: 200 * time.Millisecond}
	p.missed()
	if p.rto != 400*time.Millisecond {
		t.Errorf("after a loss %s", p.rto)
	}
	for range 100 {
		p.measured(50 * time.Microsecond)
	}
	if p.rto != tick {
		t.Errorf("on a quick path %s", p.rto)
	}
	for range 100 {
		p.measured(300 * time.Millisecond)
	}
	if p.rto < 300*time.Millisecond || p.rto > time.Second {
		t.Errorf("on a slow path %s", p.rto)
	}
}

func TestParseArgs(t *testing.T) {
	inv, err := ParseArgs(strings.Fields("--json -t 500ms --lp 4000 -ip=4001 HOST tcp_bw -m 64K -t 2 -vvs udp_lat -t 1m conf"))
	if err != nil {
		t.Fatal(err)
	}
	if !inv.JSON || len(inv.Jobs) != 3 {
		t.Fatalf("%+v", inv)
	}
	first, second, third := inv.Jobs[0], inv.Jobs[1], inv.Jobs[2]
	if o := first.Options; o.Server != "HOST" || o.Port != 4000 || o.DataPort != 4001 || o.Time != 500*time.Millisecond || o.MsgSize != 0 {
		t.Errorf("first: %+v", o)
	}
	if second.Options.MsgSize != 65536 || second.Options.Time != 2*time.Second || second.Detail.Stat != 2 || first.Detail.Stat != 0 {
		t.Errorf("second: %+v", second)
	}
	if third.Options.Time != time.Minute {
		t.Errorf("third: %+v", third)
	}
	for _, bad := range []string{"", "HOST", "HOST nonsense", "HOST -lp", "HOST -lp 70000 conf", "HOST -m 0 conf", "HOST -t -1 conf", "HOST -t 0 conf", "HOST -zz conf", "-e x HOST conf"} {
		if _, err := ParseArgs(strings.Fields(bad)); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
