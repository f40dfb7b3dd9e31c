package perf

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/podlane/podlane/perf/qperf"
)

// measured is an evaluation of two paths by all four tests: pod to pod is factor times as good as
// node to node, on a machine of that level, with that noise.
func measured(t *testing.T, seed uint64, rounds int, level, noise float64, factor func(qperf.Test) float64) *Evaluation {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	e := &Evaluation{Version: FormVersion, Base: NodeNode, Tests: qperf.Tests, Rounds: rounds, Paths: []PathInfo{{Name: NodeNode}, {Name: PodPod}}}
	for round := range rounds {
		for _, test := range e.Tests {
			good := level * math.Exp(random.NormFloat64()) // shared by the round
			for _, p := range e.Paths {
				v := good * math.Exp(noise*random.NormFloat64())
				if p.Name == PodPod {
					v *= factor(test)
				}
				if test.Latency() {
					v = 1 / v
				}
				r := drawn(test, v)
				r.Loss, r.Latency = &qperf.Loss{}, latencies
				e.Cells = append(e.Cells, Cell{Round: round + 1, Path: p.Name, Result: r})
			}
		}
	}
	e.restore()
	if err := e.conclude(); err != nil {
		t.Fatal(err)
	}
	return e
}

// latencies stands for those of a cell, which the gate does not look at.
var latencies = qperf.NewDistribution(hdrhistogram.New(1, 2, 1))

func all(f float64) func(qperf.Test) float64 { return func(qperf.Test) float64 { return f } }

func TestCompare(t *testing.T) {
	one := func(test qperf.Test, f float64) func(qperf.Test) float64 {
		return func(t qperf.Test) float64 {
			if t == test {
				return f
			}
			return 0.8
		}
	}
	for _, c := range []struct {
		name   string
		level  float64 // of the new machine: no reason for anything
		noise  float64
		factor func(qperf.Test) float64
		want   Outcome
	}{
		{"the same", 1, 0.02, all(0.8), Holds},
		{"the same on a machine ten times as fast", 10, 0.02, all(0.8), Holds},
		{"better", 0.5, 0.02, all(0.9), Holds},
		{"a tenth worse", 1, 0.02, all(0.72), Regressed},
		{"a tenth worse by latency only, on a faster machine", 3, 0.02, one(qperf.UDPLatency, 0.72), Regressed},
		{"at the margin", 1, 0.02, all(0.8 / 1.05), CannotTell},
		{"the same in much noise", 1, 0.5, all(0.8), CannotTell},
	} {
		g, err := Compare(measured(t, 1, 20, 1, c.noise, all(0.8)), measured(t, 2, 20, c.level, c.noise, c.factor), 0.05)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if g.Outcome != c.want || len(g.Checks) != 4 || len(g.Raw) != 8 {
			t.Errorf("%s: %s, want %s: %+v", c.name, g.Outcome, c.want, g.Checks)
		}
	}
}

// Two runs of the same must not be called a regression more often than alpha says, nor one at the very margin.
func TestCompare_falseAlarms(t *testing.T) {
	alarms, holds := 0, 0
	for i := range uint64(200) {
		g, err := Compare(measured(t, 2*i, 12, 1, 0.05, all(0.8)), measured(t, 2*i+1, 12, 1, 0.05, all(0.8/1.05)), 0.05)
		if err != nil {
			t.Fatal(err)
		}
		switch g.Outcome {
		case Regressed:
			alarms++
		case Holds:
			holds++
		}
	}
	t.Logf("of 200 at the margin: %d regressed, %d hold", alarms, holds)
	if alarms > 18 || holds > 18 {
		t.Errorf("of 200 at the margin: %d regressed, %d hold", alarms, holds)
	}
}

func TestCompare_invalid(t *testing.T) {
	good := func() *Evaluation { return measured(t, 1, 12, 1, 0.02, all(0.8)) }
	bad := map[string]func(*Evaluation){
		"invalid":        func(e *Evaluation) { e.Invalid = "another way" },
		"no rows":        func(e *Evaluation) { e.Rows = nil },
		"other base":     func(e *Evaluation) { e.Base = PodPod },
		"nothing common": func(e *Evaluation) { e.Rows = e.Rows[:1] },
	}
	for name, spoil := range bad {
		e := good()
		spoil(e)
		if _, err := Compare(good(), e, 0.05); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Compare(good(), good(), 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("no margin: %v", err)
	}
	few, err := Compare(measured(t, 1, 2, 1, 0.02, all(0.8)), measured(t, 2, 2, 1, 0.02, all(0.2)), 0.05)
	if err != nil || few.Outcome != CannotTell {
		t.Errorf("two rounds: %+v, %v", few, err)
	}
}

// What the new evaluation does not have cannot hold; what it has beside changes nothing.
func TestCompare_missing(t *testing.T) {
	whole := func(seed uint64, factor float64) *Evaluation { return measured(t, seed, 20, 1, 0.02, all(factor)) }
	part := func(seed uint64, factor float64) *Evaluation {
		e := whole(seed, factor)
		e.Rows = slices.DeleteFunc(e.Rows, func(r Row) bool { return r.Test == qperf.UDPLatency })
		return e
	}
	for _, c := range []struct {
		name     string
		old, new *Evaluation
		want     Outcome
	}{
		{"a test is gone", whole(1, 0.8), part(2, 0.8), CannotTell},
		{"a test is gone, another is worse", whole(1, 0.8), part(2, 0.6), Regressed},
		{"a test is new", part(1, 0.8), whole(2, 0.8), Holds},
	} {
		g, err := Compare(c.old, c.new, 0.05)
		if err != nil || g.Outcome != c.want || !strings.Contains(strings.Join(g.Notes, "\n"), "pod-pod udp_lat is ") {
			t.Errorf("%s: %+v, %v, want %s", c.name, g, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	e := measured(t, 1, 6, 1, 0.02, all(0.8))
	var text bytes.Buffer
	if err := e.Save(&text); err != nil {
		t.Fatal(err)
	}
	saved := text.String()
	back, err := Load(strings.NewReader(saved))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := back.Save(&again); err != nil || again.String() != saved {
		t.Errorf("what was loaded is saved otherwise (%v)", err)
	}
	if rows, err := Rows(back); err != nil || len(rows) != len(e.Rows) || rows[1].RatioToNode != e.Rows[1].RatioToNode {
		t.Errorf("rows made anew: %v, %v", rows, err)
	}
	for name, bad := range map[string]string{
		"rubbish": "oops", "empty": "{}", "another version": strings.Replace(saved, `"version": 1`, `"version": 7`, 1),
		"no paths": `{"version":1}`, "a cell without a result": `{"version":1,"base":"a","paths":[{"name":"a"}],"tests":["tcp_bw"],"cells":[{}]}`,
		"a ratio of nothing": `{"version":1,"base":"a","paths":[{"name":"a"}],"tests":["tcp_bw"],"evaluation":[{"path":"a","test":"tcp_bw","rounds":[1],"ratios":[0]}]}`,
	} {
		if _, err := Load(strings.NewReader(bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
