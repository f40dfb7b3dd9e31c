package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// TestMain lets the test binary stand for the podlane program: `BINARY perf client ...` and
// `BINARY perf server`.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "perf" && os.Args[2] == "server" {
		s, err := qperf.Listen(qperf.ServerConfig{Port: 4000})
		if err == nil {
			err = s.Serve(context.Background())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) > 2 && os.Args[1] == "perf" && os.Args[2] == "client" {
		inv, err := qperf.ParseArgs(os.Args[3:])
		if err == nil {
			err = inv.Run(context.Background(), os.Stdout)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nettest.Main(m)
}

// run executes on this machine, as Exec does in a node or pod.
func run(ctx context.Context, argv []string) ([]byte, error) {
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

func serve(t testing.TB) int {
	t.Helper()
	s, err := qperf.Listen(qperf.ServerConfig{Port: -1, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return int(s.Addr().Port())
}

func loopback(t testing.TB) []Path {
	port := serve(t)
	var paths []Path
	for i, name := range []string{NodeNode, PodPod, PodServicePod} {
		paths = append(paths, Path{Name: name, Address: fmt.Sprintf("127.0.0.%d", i+1), ControlPort: port, DataPort: 4001, Exec: run})
	}
	return paths
}

// TestEvaluate_loopback is the whole of it over lo: real processes, real sockets. The three
// paths are one and the same, so each ratio must be near 1.
func TestEvaluate_loopback(t *testing.T) {
	seen := 0
	start := time.Now()
	e, err := Evaluate(context.Background(), Config{
		Paths: loopback(t), Rounds: 3, Duration: 200 * time.Millisecond, Warmup: 50 * time.Millisecond, Seed: 7,
		Progress: func(p Progress) {
			if seen++; p.Done != seen || p.Total != 36 || p.Cell.Result.Value() <= 0 {
				t.Errorf("progress %+v after %d", p, seen)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if over := time.Since(start) - 36*250*time.Millisecond; over > 36*150*time.Millisecond {
		t.Errorf("%s beside the measuring itself", over)
	}
	if len(e.Cells) != 36 || len(e.Rows) != 12 || seen != 36 || len(e.Machines) != 3 {
		t.Fatalf("%d cells, %d rows, %d told, %d machines", len(e.Cells), len(e.Rows), seen, len(e.Machines))
	}
	for _, row := range e.Rows {
		checkRow(t, row)
	}
	checkOrder(t, e.Cells)
	checkDocument(t, e)
}

func checkRow(t *testing.T, row Row) {
	t.Helper()
	name := row.Path + " " + string(row.Test)
	if len(row.Rounds) != 3 || row.Median <= 0 || row.Q1 > row.Median || row.Q3 < row.Median || row.Unit != row.Test.Unit() {
		t.Errorf("%s: %+v", name, row)
	}
	if row.RatioToNode < 0.2 || row.RatioToNode > 5 {
		t.Errorf("%s: ratio %g between two names of one path", name, row.RatioToNode)
	}
	if base := row.Path == NodeNode; base && (row.RatioToNode != 1 || row.QuickLook) || !base && (row.RatioLow <= 0 || row.RatioHigh < row.RatioLow) {
		t.Errorf("%s: ratio %g in %g to %g", name, row.RatioToNode, row.RatioLow, row.RatioHigh)
	}
	if row.Test.Latency() != (row.Distribution != nil) || row.Test == qperf.UDPBandwidth && (row.SendMedian < row.Median*0.9 || row.MsgSize != 1400) {
		t.Errorf("%s: %+v", name, row)
	}
}

// checkOrder: every path by every test once a round, and what is compared one after another.
func checkOrder(t *testing.T, cells []Cell) {
	t.Helper()
	seen := map[string]int{}
	for i, c := range cells {
		seen[fmt.Sprint(c.Round, c.Path, c.Result.Test)]++
		if c.Round != i/12+1 || c.Result.Test != cells[i/3*3].Result.Test {
			t.Errorf("cell %d: round %d, %s", i, c.Round, c.Result.Test)
		}
	}
	if len(seen) != 36 {
		t.Errorf("%d different cells", len(seen))
	}
}

// checkDocument: the keys that the demo's document promises.
func checkDocument(t *testing.T, e *Evaluation) {
	t.Helper()
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Evaluation []map[string]any `json:"evaluation"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	for _, row := range doc.Evaluation {
		for _, key := range []string{"path", "test", "median", "unit", "ratio_to_node", "rounds"} {
			if row[key] == nil {
				t.Errorf("row without %s: %v", key, row)
			}
		}
	}
}

func TestOrder_fromTheSeed(t *testing.T) {
	c := Config{Tests: qperf.Tests, Paths: []Path{{Name: "a"}, {Name: "b"}, {Name: "c"}}}
	text := func(seed uint64) string {
		random := rand.New(rand.NewPCG(seed, 0))
		var b strings.Builder
		for range 3 {
			for _, s := range order(random, c) {
				b.WriteString(s.path.Name + string(s.test) + " ")
			}
		}
		return b.String()
	}
	first, again, other := text(1), text(1), text(2)
	if first != again || first == other {
		t.Error("the order is not a function of the seed")
	}
}

// fake answers every cell at once with what value gives, for tests of the arithmetic.
func fake(name string, value func(round int) float64) Path {
	n := map[string]int{}
	return Path{Name: name, Address: "192.0.2.1", Exec: func(_ context.Context, argv []string) ([]byte, error) {
		test := qperf.Test(argv[len(argv)-1])
		r := &qperf.Result{Version: 1, Test: test}
		if test == qperf.Conf {
			r.Conf = &qperf.Machines{}
			return json.Marshal(r)
		}
		n[string(test)]++
		r.Figures = &qperf.Figures{RecvBandwidth: value(n[string(test)])}
		return json.Marshal(r)
	}}
}

func TestEvaluate_ratioIsOfTheSameRound(t *testing.T) {
	level := func(round int) float64 { return math.Pow(10, float64(round)) } // drift far beyond any difference
	e, err := Evaluate(context.Background(), Config{
		Paths: []Path{fake(PodPod, func(r int) float64 { return 0.75 * level(r) }), fake(NodeNode, level)},
		Tests: []qperf.Test{qperf.TCPBandwidth}, Rounds: 6,
	})
	if err != nil {
		t.Fatal(err)
	}
	if pod := e.Rows[0]; math.Abs(pod.RatioToNode-0.75) > 1e-9 || pod.RatioHigh-pod.RatioLow > 1e-6 || pod.QuickLook {
		t.Errorf("%+v", pod)
	}
	if s := stats.Summarize(e.Rows[0].Rounds); e.Rows[0].Median != s.Median || s.Max != 750000 {
		t.Errorf("%+v", e.Rows[0])
	}
}

func TestEvaluate_errorsNameThePath(t *testing.T) {
	ok := func(int) float64 { return 1 }
	broken := errors.New("no route to host")
	failing := func(from, until int) Path {
		p, n := fake(PodPod, ok), 0
		inner := p.Exec
		p.Exec = func(ctx context.Context, argv []string) ([]byte, error) {
			if n++; n >= from && n < until {
				return nil, broken
			}
			return inner(ctx, argv)
		}
		return p
	}
	config := func(p Path) Config {
		return Config{Paths: []Path{fake(NodeNode, ok), p}, Tests: []qperf.Test{qperf.TCPBandwidth}, Rounds: 3}
	}
	for _, from := range []int{1, 3} {
		_, err := Evaluate(context.Background(), config(failing(from, 100)))
		if !errors.Is(err, broken) || !strings.Contains(err.Error(), "pod-pod") {
			t.Errorf("from attempt %d: %v", from, err)
		}
	}
	e, err := Evaluate(context.Background(), config(failing(3, 4)))
	if err != nil {
		t.Fatalf("one failure: %v", err)
	}
	if !slices.ContainsFunc(e.Cells, func(c Cell) bool { return c.Retried != "" }) {
		t.Error("the second attempt is not recorded")
	}
	for name, bad := range map[string]Config{
		"no path":  {},
		"twice":    {Paths: []Path{fake("a", ok), fake("a", ok)}},
		"rounds":   {Paths: []Path{fake("a", ok)}, Rounds: -1},
		"budget":   {Paths: []Path{fake("a", ok)}, Budget: -time.Second},
		"duration": {Paths: []Path{fake("a", ok)}, Duration: time.Millisecond},
		"nothing":  {Paths: []Path{fake("a", func(int) float64 { return 0 })}, Tests: []qperf.Test{qperf.TCPBandwidth}},
		"rubbish":  {Paths: []Path{{Name: "a", Address: "b", Exec: func(context.Context, []string) ([]byte, error) { return []byte("oops"), nil }}}},
	} {
		if _, err := Evaluate(context.Background(), bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	lossy := &qperf.Result{Version: 1, Test: qperf.UDPSearch, Figures: &qperf.Figures{}, Loss: &qperf.Loss{}, Search: &qperf.Search{HalfPercent: 1e6}}
	if err := usable(lossy, qperf.UDPSearch); err == nil || !strings.Contains(err.Error(), "lost at every rate") {
		t.Errorf("loss at every rate: %v", err)
	}
}

// What has to live as long as the measuring lives that long: with a budget, and with rounds alone.
func TestLongest(t *testing.T) {
	c := Config{Tests: qperf.Tests, Duration: time.Second, Budget: 5 * time.Minute}
	if d := c.Longest(3); d < 5*time.Minute+12*time.Second || d > 7*time.Minute {
		t.Errorf("with a budget: %s", d)
	}
	c.Budget, c.Rounds = 0, 100
	if d := c.Longest(3); d < 20*time.Minute || d > 2*time.Hour {
		t.Errorf("with rounds: %s", d)
	}
	one := c.Longest(1)
	if c.Tests = append(slices.Clone(c.Tests), qperf.UDPSearch); c.Longest(1) < 2*one {
		t.Errorf("with a search: %s, without %s", c.Longest(1), one)
	}
}

func TestEvaluate_stops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	start := time.Now()
	_, err := Evaluate(ctx, Config{Paths: loopback(t), Rounds: 100, Progress: func(Progress) { cancel() }})
	if err == nil || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s", err, time.Since(start))
	}
}
