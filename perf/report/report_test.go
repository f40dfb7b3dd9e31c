package report

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

var keep = flag.String("keep", "", "write the HTML report of the test to this file")

// evaluation goes through the real engine, with clients that draw their figures: node to
// node 1.25 GB/s, 47 us, 195 MB/s, and the known factors for the other paths.
func evaluation(t *testing.T, rounds int, noise float64) *perf.Evaluation {
	t.Helper()
	random := rand.New(rand.NewPCG(3, 4))
	factors := map[string]map[qperf.Test]float64{
		perf.NodeNode:      {qperf.TCPBandwidth: 1.25e9, qperf.TCPLatency: 47e-6, qperf.UDPBandwidth: 195e6, qperf.UDPLatency: 43e-6},
		perf.PodPod:        {qperf.TCPBandwidth: 1.0e9, qperf.TCPLatency: 58e-6, qperf.UDPBandwidth: 105e6, qperf.UDPLatency: 54e-6},
		perf.PodServicePod: {qperf.TCPBandwidth: 0.98e9, qperf.TCPLatency: 61e-6, qperf.UDPBandwidth: 101e6, qperf.UDPLatency: 57e-6},
	}
	var paths []perf.Path
	for _, name := range []string{perf.NodeNode, perf.PodPod, perf.PodServicePod} {
		paths = append(paths, perf.Path{Name: name, Address: "192.0.2.1", Exec: func(_ context.Context, argv []string) ([]byte, error) {
			test := qperf.Test(argv[len(argv)-1])
			return json.Marshal(drawn(test, factors[name][test]*math.Exp(noise*random.NormFloat64())))
		}})
	}
	e, err := perf.Evaluate(context.Background(), perf.Config{Paths: paths, Rounds: rounds, Seed: 42, Binary: "podlane"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func drawn(test qperf.Test, v float64) *qperf.Result {
	r := &qperf.Result{Version: 1, Test: test, MsgSize: 1400}
	switch {
	case test == qperf.Conf:
		m := qperf.Machine{Node: "n1", CPU: "2 Cores: AMD EPYC 2.6GHz", OS: "Linux 6.18", Qperf: "0.4.11"}
		r.Conf, r.Path.MTU = &qperf.Machines{Local: m, Remote: m}, 1450
	case test.Latency():
		h := hdrhistogram.New(1, int64(time.Minute), 3)
		for i := range int64(1000) {
			_ = h.RecordValue(int64(2e9*v) + i*i/20)
		}
		r.Figures, r.Latency, r.Loss = &qperf.Figures{Latency: v}, qperf.NewDistribution(h), &qperf.Loss{}
	default:
		r.Figures, r.Loss = &qperf.Figures{RecvBandwidth: v, SendBandwidth: 1.3 * v}, &qperf.Loss{Fraction: 0.231}
	}
	if n := uint64(0.1 * v / 1400); test.Latency() {
		r.Series = &qperf.Series{Every: 0.1, Messages: []uint64{uint64(0.05 / v), uint64(0.05 / v), 0}}
	} else if test != qperf.Conf {
		r.Series = &qperf.Series{Every: 0.1, Messages: []uint64{n, n + n/20}}
	}
	return r
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	if err := Table(&out, evaluation(t, 5, 0)); err != nil {
		t.Fatal(err)
	}
	const want = `test     path             median       quartiles                   ratio to node-node  95 % interval  note
tcp_bw   node-node        1.25 GB/sec  1.25 GB/sec .. 1.25 GB/sec  1                                  
         pod-pod          1 GB/sec     1 GB/sec .. 1 GB/sec        0.80                0.80 .. 0.80   
         pod-service-pod  980 MB/sec   980 MB/sec .. 980 MB/sec    0.78                0.78 .. 0.78   
tcp_lat  node-node        47 us        47 us .. 47 us              1                                  
         pod-pod          58 us        58 us .. 58 us              1.23                1.23 .. 1.23   
         pod-service-pod  61 us        61 us .. 61 us              1.30                1.30 .. 1.30   
udp_bw   node-node        195 MB/sec   195 MB/sec .. 195 MB/sec    1                                  lost 23.1 %
         pod-pod          105 MB/sec   105 MB/sec .. 105 MB/sec    0.54                0.54 .. 0.54   lost 23.1 %
         pod-service-pod  101 MB/sec   101 MB/sec .. 101 MB/sec    0.52                0.52 .. 0.52   lost 23.1 %
udp_lat  node-node        43 us        43 us .. 43 us              1                                  
         pod-pod          54 us        54 us .. 54 us              1.26                1.26 .. 1.26   
         pod-service-pod  57 us        57 us .. 57 us              1.33                1.33 .. 1.33   
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestTable_quickLook(t *testing.T) {
	var out bytes.Buffer
	if err := Table(&out, evaluation(t, 5, 0.2)); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "quick look"); n < 8 {
		t.Errorf("%d times in\n%s", n, out.String())
	}
}

func about() About {
	return About{
		Date: "2026-11-22 10:00 UTC", Version: "v0.1.0", Commands: []string{"podlane lab demo --rounds 5"},
		Facts: []Fact{{"overlay", "vxlan"}, {"<b>hostile</b>", `</script><script>document.title="owned"</script>`}},
	}
}

func TestHTML_selfContained(t *testing.T) {
	var out bytes.Buffer
	if err := HTML(&out, evaluation(t, 5, 0.04), about()); err != nil {
		t.Fatal(err)
	}
	if *keep != "" {
		if err := os.WriteFile(*keep, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text := out.String()
	for _, bad := range []string{"src=", "<link", "@import", "fetch(", "XMLHttpRequest", "<b>hostile"} {
		if strings.Contains(text, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if n := strings.Count(text, "</script>"); n != 3 {
		t.Errorf("%d ends of scripts, want 3", n)
	}
	for _, want := range []string{"podlane lab demo --rounds 5", "AMD EPYC", "MTU 1450", "1400 bytes in udp_bw", "MIT", "seed 42", "--lp 4000 --ip 4001"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

// What went on over the time of the run: a part in which nothing arrived has no latency, and no bandwidth.
func TestOverTime(t *testing.T) {
	e := evaluation(t, 5, 0)
	e.Cells[0].At, e.Warmup = 2, 0.1
	c := e.Cells[0]
	dots := overTime(e)[string(c.Result.Test)][c.Path]
	if len(overTime(e)) != 4 || len(dots) != 10 || dots[0][0] != 2.15 || math.Abs(dots[0][1]/e.Rows[slices.IndexFunc(e.Rows, func(r perf.Row) bool { return r.Path == c.Path && r.Test == c.Result.Test })].Median-1) > 0.01 {
		t.Errorf("%s on %s: %v", c.Result.Test, c.Path, dots)
	}
}

// TestHTML_inBrowser opens the page from a file in a browser without a network: all plots must be drawn, with the right axes.
func TestHTML_inBrowser(t *testing.T) {
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skipf("needs chromium: %v", err)
	}
	file := filepath.Join(t.TempDir(), "podlane-report.html")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := HTML(f, evaluation(t, 5, 0.04), about()); err != nil {
		t.Fatal(err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--user-data-dir=" + t.TempDir(), "--virtual-time-budget=3000", "--dump-dom", "file://" + file}
	dom, err := exec.CommandContext(ctx, browser, args...).Output()
	if err != nil {
		t.Skipf("chromium does not run here: %v", err)
	}
	if n := strings.Count(string(dom), "<canvas"); n != 14 {
		t.Errorf("%d plots drawn, want 14", n)
	}
	if strings.Contains(string(dom), "<title>owned") {
		t.Error("a fact was run as a script")
	}
}
