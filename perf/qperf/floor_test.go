package qperf

import (
	"encoding/json"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/perf/stats"
)

// BenchmarkFloor compares the engine with the real qperf over loopback, interleaved: in each
// round (an iteration) both measure once for a second, in random order, client and server
// processes of their own. The metric is ours / qperf's, the median of the rounds:
//
//	go test -run '^$' -bench Floor -benchtime 20x ./perf/qperf
func BenchmarkFloor(b *testing.B) {
	if _, err := exec.LookPath("qperf"); err != nil {
		b.Skipf("needs qperf, the real one: %v", err)
	}
	ours, theirs := freePort(b), freePort(b)
	startServer(b, ours)
	start(b, "qperf", "-lp", strconv.Itoa(theirs))
	time.Sleep(200 * time.Millisecond)
	for _, test := range Tests {
		b.Run(string(test), func(b *testing.B) {
			var own, real []float64
			for b.Loop() {
				measure := []func(){
					func() { own = append(own, ownFigure(b, ours, test)) },
					func() { real = append(real, realFigure(b, theirs, test)) },
				}
				for _, i := range rand.Perm(2) {
					measure[i]()
				}
			}
			report(b, own, real, test)
		})
	}
}

func report(b *testing.B, own, real []float64, test Test) {
	r, err := stats.Paired(own, real, 0.95)
	if err != nil && len(own) > 1 {
		b.Fatal(err)
	}
	b.ReportMetric(r.Median, "ours/qperf")
	b.ReportMetric(r.Low, "low")
	b.ReportMetric(r.High, "high")
	b.Logf("%s: ours %s, qperf %s", test, test.Format(stats.Median(own)), test.Format(stats.Median(real)))
}

func floorArgs(port int, test Test) []string {
	size := test.DefaultSize()
	if test == UDPBandwidth {
		size = FittingDatagram
	}
	return []string{"127.0.0.1", "-lp", strconv.Itoa(port), "-t", "1", "-m", strconv.Itoa(size), "-uu", "-e", "9", string(test)}
}

func ownFigure(b *testing.B, port int, test Test) float64 {
	r := &Result{}
	if err := json.Unmarshal([]byte(ourClient(b, append([]string{"--json"}, floorArgs(port, test)...)...)), r); err != nil {
		b.Fatal(err)
	}
	return r.Value()
}

// realFigure reads the last figure of the real client's output: recv_bw, bw or latency, in base units.
func realFigure(b *testing.B, port int, test Test) float64 {
	out, err := exec.Command("qperf", floorArgs(port, test)...).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	if err != nil || len(fields) < 4 {
		b.Fatalf("qperf: %v\n%s", err, out)
	}
	v, err := strconv.ParseFloat(fields[2], 64)
	if err != nil {
		b.Fatalf("qperf: %s", out)
	}
	if fields[3] == "ns" {
		v /= 1e9
	}
	return v
}
