package stats

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"
)

// The values are R's: wilcox.test(x, alternative="greater") and with conf.int=TRUE.
func TestSignedRank(t *testing.T) {
	closeTo(t, "all above", SignedRank([]float64{1, 2, 3, 4, 5}), 1.0/32, 1e-12)
	closeTo(t, "one below", SignedRank([]float64{-1, 2, 3, 4, 5}), 2.0/32, 1e-12)
	closeTo(t, "none", SignedRank(nil), 1, 0)
	closeTo(t, "zeros", SignedRank([]float64{0, 0}), 1, 0)
	// Hollander and Wolfe's depression scale, as in R's help: V = 40, p = 0.01953.
	x := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	y := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29}
	d := make([]float64, len(x))
	for i := range x {
		d[i] = x[i] - y[i]
	}
	closeTo(t, "Hollander and Wolfe", SignedRank(d), 0.01953125, 1e-9)
}

// Exact and normal tails must meet where one takes over from the other.
func TestSignedRank_normalTail(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		xs := make([]float64, exactBelow-1)
		for i := range xs {
			xs[i] = random.NormFloat64() + 0.3
		}
		exact := SignedRank(xs)
		sum := 0.0
		for i, x := range xs {
			rank := 0.0
			for _, y := range xs {
				if math.Abs(y) <= math.Abs(x) {
					rank++
				}
			}
			if xs[i] > 0 {
				sum += rank
			}
		}
		n := float64(len(xs))
		closeTo(t, "tail", upper((sum-n*(n+1)/4-0.5)/math.Sqrt(n*(n+1)*(2*n+1)/24)), exact, 0.004)
	}
}

func TestShift(t *testing.T) {
	if _, _, _, err := Shift([]float64{1, 2, 3, 4, 5}, 0.95); !errors.Is(err, ErrTooFew) {
		t.Errorf("five values: %v", err)
	}
	// Six values: the interval is from the lowest to the highest.
	middle, low, high, err := Shift([]float64{3, 1, 2, 5, 8, 4}, 0.95)
	if err != nil || low != 1 || high != 8 || middle != 3.5 {
		t.Errorf("%g in %g to %g, %v", middle, low, high, err)
	}
}

// heavy is noise with a tail: one value in ten is ten times as far out.
func heavy(random *rand.Rand) float64 {
	x := random.NormFloat64()
	if random.IntN(10) == 0 {
		x *= 10
	}
	return x
}

func TestShift_coverage(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	for _, n := range []int{6, 10, 29, 31, 80} {
		held, narrower := 0, 0
		const runs = 1500
		for range runs {
			xs := make([]float64, n)
			for i := range xs {
				xs[i] = 2 + heavy(random)
			}
			_, low, high, err := Shift(xs, 0.95)
			if err != nil {
				t.Fatal(err)
			}
			if low <= 2 && 2 <= high {
				held++
			}
			if tlow, thigh, _ := Mean(xs, 0.95); high-low < thigh-tlow {
				narrower++
			}
		}
		if part := float64(held) / runs; part < 0.935 || part > 0.985 {
			t.Errorf("%d values: held in %.3f", n, part)
		}
		if n >= 29 && narrower < runs*9/10 {
			t.Errorf("%d values: narrower than Student's only %d times in %d", n, narrower, runs)
		}
	}
}

func TestRankSum(t *testing.T) {
	closeTo(t, "apart", RankSum([]float64{4, 5, 6}, []float64{1, 2, 3}), 1.0/20, 1e-12)
	closeTo(t, "the other way", RankSum([]float64{1, 2, 3}, []float64{4, 5, 6}), 1, 1e-12)
	closeTo(t, "one pair turned", RankSum([]float64{3, 5, 6}, []float64{1, 2, 4}), 2.0/20, 1e-12)
	closeTo(t, "none", RankSum(nil, []float64{1}), 1, 0)
	// R: wilcox.test(c(0.80,0.83,1.89,1.04,1.45,1.38,1.91,1.64,0.73,1.46), c(1.15,0.88,0.90,0.74,1.21), alternative="greater"): W = 35, p = 0.1272.
	closeTo(t, "Hollander and Wolfe", RankSum([]float64{0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46}, []float64{1.15, 0.88, 0.90, 0.74, 1.21}), 0.12720612720, 1e-9)
}

func TestApart_coverage(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 10))
	for _, n := range []int{5, 12, 30} {
		held := 0
		const runs = 1000
		for range runs {
			xs, ys := make([]float64, n), make([]float64, n)
			for i := range xs {
				xs[i], ys[i] = 3+heavy(random), heavy(random)
			}
			_, low, high, err := Apart(xs, ys, 0.95)
			if err != nil {
				t.Fatal(err)
			}
			if low <= 3 && 3 <= high {
				held++
			}
		}
		if part := float64(held) / runs; part < 0.935 || part > 0.985 {
			t.Errorf("%d values: held in %.3f", n, part)
		}
	}
	if _, _, _, err := Apart([]float64{1}, []float64{2}, 0.95); !errors.Is(err, ErrTooFew) {
		t.Errorf("one value each: %v", err)
	}
}

func TestTrend(t *testing.T) {
	tau, p := Trend([]float64{1, 2, 3, 4, 5, 6, 7, 8})
	closeTo(t, "rising", tau, 1, 0)
	closeTo(t, "rising", p, 0.000827, 1e-5) // normal, z = 27 / sqrt(65.33)
	if tau, p := Trend([]float64{8, 7, 6, 5, 4, 3, 2, 1}); tau != -1 || p > 0.001 {
		t.Errorf("falling: %g, %g", tau, p)
	}
	if tau, p := Trend([]float64{3, 3, 3, 3, 3}); tau != 0 || p != 1 {
		t.Errorf("level: %g, %g", tau, p)
	}
	if _, p := Trend([]float64{1, 2, 3}); p != 1 {
		t.Errorf("three values: %g", p)
	}
	random := rand.New(rand.NewPCG(11, 12))
	alarms := 0
	for range 2000 {
		xs := make([]float64, 20)
		for i := range xs {
			xs[i] = random.NormFloat64()
		}
		if _, p := Trend(xs); p < 0.05 {
			alarms++
		}
	}
	closeTo(t, "false alarms", float64(alarms)/2000, 0.05, 0.015)
}

func TestHolm(t *testing.T) {
	for i, want := range []float64{0.04, 0.06, 0.06, 0.02} { // R: p.adjust(c(0.01,0.04,0.03,0.005), "holm") is 0.03 0.06 0.06 0.02
		got := Holm([]float64{0.01, 0.04, 0.03, 0.005})[i]
		if i == 0 {
			want = 0.03
		}
		closeTo(t, "holm", got, want, 1e-12)
	}
}

func TestJudge(t *testing.T) {
	above := func(by float64) []float64 {
		xs := make([]float64, 12)
		for i := range xs {
			xs[i] = by + 0.001*float64(i)
		}
		return xs
	}
	js := Judge([]Comparison{{above(0.1), false}, {above(0.1), true}, {above(-0.1), false}, {above(-0.0055), true}}, 0, 0.05)
	for i, want := range []Verdict{Better, Worse, Worse, CannotTell} {
		if js[i].Verdict != want {
			t.Errorf("%d: %+v, want %s", i, js[i], want)
		}
	}
	if j := Judge([]Comparison{{above(0.03), true}}, 0.05, 0.05)[0]; j.Verdict != CannotTell {
		t.Errorf("3 %% with a margin of 5 %%: %+v", j)
	}
	if j := Judge([]Comparison{{above(0.08), true}}, 0.05, 0.05)[0]; j.Verdict != Worse {
		t.Errorf("8 %% with a margin of 5 %%: %+v", j)
	}
	if js := Judge(nil, 0, 0.05); len(js) != 0 {
		t.Error(js)
	}
}

func TestLooks(t *testing.T) {
	var at []int
	for n := range 41 {
		if Looks(10, n) {
			at = append(at, n)
		}
	}
	if len(at) != 19 || at[0] != 10 || at[18] != 39 {
		t.Errorf("%v", at)
	}
}

func closeTo(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if !(math.Abs(got-want) <= within) {
		t.Errorf("%s: %.6g, want %.6g", what, got, want)
	}
}
