package perf

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// The budget that `lab perf` and `perf run` have when nobody says otherwise, in rounds of
// the four tests over three paths with their idle cell: 13 cells of 250 ms in 5 minutes.
const budgetRounds = 80

// loadNoise reads rounds recorded by TestRecord: one and the same path under three names.
func loadNoise(t *testing.T, name string) noise {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Skipf("needs recorded rounds (go test -run TestRecord -record testdata/%s ./perf, on a quiet machine): %v", name, err)
	}
	n := noise{}
	if err := json.Unmarshal(text, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// simulate draws an evaluation as it would have gone on: each round is a recorded one, its
// three figures given to the three names in random order, so that by construction no name is
// better. level multiplies a figure, by path, test and the place of its cell in time (0 to 1).
// It stops as Evaluate does.
func (n noise) simulate(random *rand.Rand, level func(path string, t qperf.Test, round int) float64) *Evaluation {
	names := []string{NodeNode, PodPod, PodServicePod}
	e := &Evaluation{Base: NodeNode, Tests: qperf.Tests, Config: Config{Width: 0.04, MinRounds: 10}}
	for _, name := range names {
		e.Paths = append(e.Paths, PathInfo{Name: name})
	}
	for e.Rounds < budgetRounds {
		for _, t := range e.Tests {
			rounds := n[string(t)]
			pick := random.IntN(len(rounds[0]))
			for i, from := range random.Perm(len(names)) {
				v := rounds[from][pick] * level(names[i], t, e.Rounds)
				e.Cells = append(e.Cells, Cell{Path: names[i], Round: e.Rounds + 1, Result: drawn(t, v)})
			}
		}
		if e.Rounds++; stats.Looks(e.Config.MinRounds, e.Rounds) && stats.Narrow(e.family(), e.Config.Width, Confidence) {
			break
		}
	}
	return e
}

func drawn(t qperf.Test, v float64) *qperf.Result {
	r := &qperf.Result{Test: t, Figures: &qperf.Figures{}}
	if t.Latency() {
		r.Figures.Latency = v
	} else {
		r.Figures.RecvBandwidth = v
	}
	return r
}

// verdicts counts them, and those of one path by themselves.
func verdicts(e *Evaluation, path string) (different, worse int) {
	i := 0
	js := stats.Judge(e.family(), 0, 1-Confidence)
	for range e.Tests {
		for _, p := range e.Paths {
			if p.Name == e.Base {
				continue
			}
			if js[i].Verdict != stats.CannotTell {
				different++
			}
			if js[i].Verdict == stats.Worse && p.Name == path {
				worse++
			}
			i++
		}
	}
	return different, worse
}

func same(string, qperf.Test, int) float64 { return 1 }

// Of 1,000 runs of paths that are all the same at most 65 may find any difference, over all
// paths and tests together: 50 are to be expected, and 15 is two standard deviations.
func TestSimulation_noFalseVerdicts(t *testing.T) {
	for _, name := range []string{"noise.json", "quiet.json"} { // of a busy machine, and of one with nothing else to do
		t.Run(name, func(t *testing.T) {
			n := loadNoise(t, name)
			random := rand.New(rand.NewPCG(21, 22))
			wrong, rounds := 0, 0
			for range 1000 {
				e := n.simulate(random, same)
				if different, _ := verdicts(e, ""); different > 0 {
					wrong++
				}
				rounds += e.Rounds
			}
			t.Logf("%d of 1,000 runs with a false verdict, %d rounds a run", wrong, rounds/1000)
			if wrong > 65 {
				t.Errorf("%d of 1,000 runs have a false verdict", wrong)
			}
			if wrong == 0 {
				t.Error("none of 1,000 runs has a false verdict: the test is not at its level, or cannot find anything")
			}
		})
	}
}

// slower makes a path 5 % worse by every test.
func slower(path string, t qperf.Test, _ int) float64 {
	switch {
	case path != PodPod:
		return 1
	case t.Latency():
		return 1.05
	}
	return 1 / 1.05
}

// A path 5 % slower is found in 90 of 100 runs, within the default budget.
func TestSimulation_power(t *testing.T) {
	n := loadNoise(t, "quiet.json")
	random := rand.New(rand.NewPCG(23, 24))
	found, tests, rounds := 0, 0, 0
	for range 100 {
		e := n.simulate(random, slower)
		if _, worse := verdicts(e, PodPod); worse > 0 {
			found++
			tests += worse
		}
		rounds += e.Rounds
	}
	t.Logf("found in %d of 100 runs, by %.1f of 4 tests, in %d rounds", found, float64(tests)/float64(max(found, 1)), rounds/100)
	if found < 90 {
		t.Errorf("found in %d of 100 runs", found)
	}
}

// Load that ramps up during the run takes a third of the speed. In interleaved order no
// path is the worse for it; measured one path after the other, as other tools do, nearly every run
// finds a difference where there is none.
func TestSimulation_drift(t *testing.T) {
	n := loadNoise(t, "noise.json")
	random := rand.New(rand.NewPCG(25, 26))
	ramp := func(at float64, test qperf.Test) float64 {
		if test.Latency() {
			return 1 + at/2
		}
		return 1 / (1 + at/2)
	}
	interleaved := func(_ string, test qperf.Test, round int) float64 { return ramp(float64(round)/budgetRounds, test) }
	sequential := func(path string, test qperf.Test, round int) float64 {
		third := map[string]float64{NodeNode: 0, PodPod: 1, PodServicePod: 2}[path]
		return ramp((third+float64(round)/budgetRounds)/3, test)
	}
	count := func(level func(string, qperf.Test, int) float64) (runs int) {
		for range 200 {
			if different, _ := verdicts(n.simulate(random, level), ""); different > 0 {
				runs++
			}
		}
		return runs
	}
	straight, inRow := count(interleaved), count(sequential)
	t.Logf("a difference in %d of 200 interleaved runs, in %d of 200 sequential ones", straight, inRow)
	if straight > 18 { // 10 are to be expected
		t.Errorf("interleaved: a difference in %d of 200", straight)
	}
	if inRow < 100 {
		t.Errorf("sequential: a difference in %d of 200 only: the ramp shows nothing", inRow)
	}
}

// A ramp is told by its trend.
func TestWarnings_trend(t *testing.T) {
	n := loadNoise(t, "noise.json")
	random := rand.New(rand.NewPCG(27, 28))
	e := n.simulate(random, func(_ string, test qperf.Test, round int) float64 { return math.Exp(-float64(round) / 40) })
	if ws := trends(e); len(ws) != 4 {
		t.Errorf("%q", ws)
	}
	if ws := trends(n.simulate(random, same)); len(ws) != 0 {
		t.Errorf("%q", ws)
	}
}
