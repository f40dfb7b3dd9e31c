package qperf

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/perf/stats"
)

// A floor is one measurement by one engine: its figure, and the CPU seconds that the client's
// process took for it, which does not depend on what else the machine is doing.
type floor struct{ figure, cpu float64 }

// cost is CPU time for a byte, or for a message there and back.
func (f floor) cost(test Test) float64 {
	if test.Latency() {
		return f.cpu * f.figure
	}
	return f.cpu / f.figure
}

// loosely leaves it to the kernel where clients and servers run.
var loosely = flag.Bool("loosely", false, "do not keep clients and servers to a CPU each (BenchmarkFloor)")

// BenchmarkFloor compares the engine with the real qperf over loopback, interleaved: in each
// round (an iteration) both measure once for a second, in random order, client and server
// processes of their own. Both engines' servers are kept to one CPU and their clients to another: where the
// kernel happens to put the two ends decides over more than any engine does. The metrics are ours / qperf's,
// the median of the rounds and its 95 % interval, and the same for the client's CPU time:
//
//	make bench-floor
func BenchmarkFloor(b *testing.B) {
	if _, err := exec.LookPath("qperf"); err != nil {
		b.Skipf("needs qperf, the real one: %v", err)
	}
	ours, theirs := freePort(b), freePort(b)
	for _, server := range [][]string{{os.Args[0], "perf", "server", strconv.Itoa(ours)}, {"qperf", "-lp", strconv.Itoa(theirs)}} {
		server = onCPU(1, server...)
		start(b, server[0], server[1:]...)
	}
	time.Sleep(200 * time.Millisecond)
	for _, test := range Tests {
		b.Run(string(test), func(b *testing.B) {
			var own, real []floor
			for b.Loop() {
				measure := []func(){
					func() { own = append(own, ownFloor(b, ours, test)) },
					func() { real = append(real, realFloor(b, theirs, test)) },
				}
				for _, i := range rand.Perm(2) {
					measure[i]()
				}
			}
			report(b, own, real, test)
		})
	}
}

func report(b *testing.B, own, real []floor, test Test) {
	column := func(fs []floor, of func(floor) float64) (xs []float64) {
		for _, f := range fs {
			xs = append(xs, of(f))
		}
		return xs
	}
	figure := func(f floor) float64 { return f.figure }
	cost := func(f floor) float64 { return f.cost(test) }
	r, err := stats.Paired(column(own, figure), column(real, figure), 0.95)
	c, errCost := stats.Paired(column(own, cost), column(real, cost), 0.95)
	if len(own) > 1 && (err != nil || errCost != nil) {
		b.Fatal(err, errCost)
	}
	for name, v := range map[string]float64{"ratio": r.Median, "low": r.Low, "high": r.High, "cpu-ratio": c.Median, "cpu-low": c.Low, "cpu-high": c.High} {
		b.ReportMetric(v, name)
	}
	b.Logf("%s: ours %s, qperf %s", test, test.Format(stats.Median(column(own, figure))), test.Format(stats.Median(column(real, figure))))
}

func floorArgs(port int, test Test) []string {
	size := test.DefaultSize()
	if test == UDPBandwidth {
		size = FittingDatagram
	}
	return []string{"127.0.0.1", "-lp", strconv.Itoa(port), "-t", "1", "-m", strconv.Itoa(size), "-uu", "-e", "9", string(test)}
}

// onCPU keeps a command to a CPU, where there are two.
func onCPU(cpu int, argv ...string) []string {
	if *loosely || runtime.NumCPU() < 2 {
		return argv
	}
	return append([]string{"taskset", "-c", strconv.Itoa(cpu)}, argv...)
}

// timed runs a client and gives its output and its CPU seconds.
func timed(b *testing.B, name string, args ...string) (string, float64) {
	argv := onCPU(0, append([]string{name}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
	return strings.TrimSpace(string(out)), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

func ownFloor(b *testing.B, port int, test Test) floor {
	out, cpu := timed(b, os.Args[0], append([]string{"perf", "client", "--json"}, floorArgs(port, test)...)...)
	r := &Result{}
	if err := json.Unmarshal([]byte(out), r); err != nil {
		b.Fatal(err)
	}
	return floor{r.Value(), cpu}
}

// realFloor reads the last figure of the real client's output: recv_bw, bw or latency, in base units.
func realFloor(b *testing.B, port int, test Test) floor {
	out, cpu := timed(b, "qperf", floorArgs(port, test)...)
	fields := strings.Fields(out[strings.LastIndex(out, "\n")+1:])
	if len(fields) < 4 {
		b.Fatalf("qperf: %s", out)
	}
	v, err := strconv.ParseFloat(fields[2], 64)
	if err != nil {
		b.Fatalf("qperf: %s", out)
	}
	if fields[3] == "ns" {
		v /= 1e9
	}
	return floor{v, cpu}
}
