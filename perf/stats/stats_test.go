package stats

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

func near(a, b, part float64) bool { return math.Abs(a-b) <= part*math.Abs(b) }

// Values of the usual printed tables.
func TestStudentT(t *testing.T) {
	for _, c := range []struct{ p, df, want float64 }{
		{0.975, 1, 12.7062}, {0.975, 2, 4.30265}, {0.975, 4, 2.77645}, {0.975, 9, 2.26216},
		{0.975, 30, 2.04227}, {0.975, 1e6, 1.95997}, {0.95, 4, 2.13185}, {0.995, 4, 4.60409}, {0.9995, 3, 12.924},
	} {
		if got := StudentT(c.p, c.df); !near(got, c.want, 1e-5) {
			t.Errorf("t(%g, %g): got %g, want %g", c.p, c.df, got, c.want)
		}
	}
}

// What NumPy's percentile gives.
func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		xs   []float64
		want Summary
	}{
		{nil, Summary{}},
		{[]float64{7}, Summary{1, 7, 7, 7, 7, 7}},
		{[]float64{4, 1, 3, 2}, Summary{4, 1, 1.75, 2.5, 3.25, 4}},
		{[]float64{5, 1, 4, 2, 3}, Summary{5, 1, 2, 3, 4, 5}},
	} {
		if got := Summarize(c.xs); got != c.want {
			t.Errorf("%v: got %+v, want %+v", c.xs, got, c.want)
		}
	}
}

func TestPaired_driftCancels(t *testing.T) {
	base := []float64{100, 50, 200, 25, 400}
	values := make([]float64, len(base))
	for i := range base {
		values[i] = base[i] * 0.8
	}
	r, err := Paired(values, base, 0.95)
	if err != nil {
		t.Fatal(err)
	}
	if !near(r.Median, 0.8, 1e-12) || !near(r.Low, 0.8, 1e-9) || !near(r.High, 0.8, 1e-9) || r.QuickLook() {
		t.Errorf("%+v", r)
	}
}

func TestPaired_knownInterval(t *testing.T) {
	// Logarithms 0, 0.1, 0.2: mean 0.1, standard deviation 0.1, t(2) = 4.30265.
	half := 4.30265 * 0.1 / math.Sqrt(3)
	r, err := Paired([]float64{1, math.Exp(0.1), math.Exp(0.2)}, []float64{1, 1, 1}, 0.95)
	if err != nil {
		t.Fatal(err)
	}
	if !near(r.Low, math.Exp(0.1-half), 1e-5) || !near(r.High, math.Exp(0.1+half), 1e-5) || !r.QuickLook() {
		t.Errorf("%+v, want %g to %g", r, math.Exp(0.1-half), math.Exp(0.1+half))
	}
}

func TestPaired_badInput(t *testing.T) {
	for _, c := range [][2][]float64{
		{{1, 2}, {1}}, {{0, 1}, {1, 1}}, {{1, 1}, {0, 1}}, {{math.NaN(), 1}, {1, 1}}, {{-1, 1}, {1, 1}}, {{math.Inf(1), 1}, {1, 1}},
	} {
		if _, err := Paired(c[0], c[1], 0.95); err == nil {
			t.Errorf("%v against %v: no error", c[0], c[1])
		}
	}
	r, err := Paired([]float64{3}, []float64{2}, 0.95)
	if !errors.Is(err, ErrTooFew) || r.Median != 1.5 || !r.QuickLook() {
		t.Errorf("one round: %+v, %v", r, err)
	}
}

// The interval must hold the truth as often as it says, whatever the level does between
// rounds, and a path that is the same as its base must not be told from it.
func TestPaired_coverage(t *testing.T) {
	const runs = 4000
	random := rand.New(rand.NewPCG(1, 2))
	for _, rounds := range []int{3, 5, 8, 20} {
		for _, truth := range []float64{1, 0.8} {
			held := 0
			for range runs {
				values, base := make([]float64, rounds), make([]float64, rounds)
				for i := range rounds {
					level := math.Exp(random.NormFloat64()) // shared by both paths of the round
					base[i] = level * math.Exp(0.1*random.NormFloat64())
					values[i] = truth * level * math.Exp(0.1*random.NormFloat64())
				}
				r, err := Paired(values, base, 0.95)
				if err != nil {
					t.Fatal(err)
				}
				if r.Low <= truth && truth <= r.High {
					held++
				}
			}
			if part := float64(held) / runs; part < 0.94 || part > 0.965 {
				t.Errorf("%d rounds, truth %g: held in %.3f of the runs", rounds, truth, part)
			}
		}
	}
}
