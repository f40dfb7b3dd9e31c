package stats

import (
	"cmp"
	"math"
	"slices"
)

// A Verdict on one path against another.
type Verdict string

// The three verdicts. CannotTell is not "the same": it is that the rounds do not show a
// difference beyond the margin, in either direction.
const (
	Better     Verdict = "better"
	Worse      Verdict = "worse"
	CannotTell Verdict = "cannot tell"
)

// A Comparison is the logarithms of the ratios of one path to another, a round each. LowerIsBetter turns it
// round: a ratio above 1 is then worse.
type Comparison struct {
	Logs          []float64
	LowerIsBetter bool
}

// A Judgement is what the rounds say of one Comparison.
type Judgement struct {
	Verdict Verdict
	// P is the chance that rounds without a difference look so different, or more, corrected for the number of comparisons.
	P float64
}

// Judge gives the verdicts of a family of comparisons together: with the chance alpha at most is any of
// them wrong about paths that do not differ by more than the margin (0.05 is 5 %; 0 for any
// difference). So many looks at the same noise would find something: with 8 comparisons at 5 %
// each, one run in three. Holm's correction takes care of it.
func Judge(family []Comparison, margin, alpha float64) []Judgement {
	ps, verdicts := make([]float64, len(family)), make([]Verdict, len(family))
	for i, c := range family {
		up, down := beyond(c.Logs, math.Log1p(margin)), beyond(negated(c.Logs), math.Log1p(margin))
		ps[i] = min(2*min(up, down), 1)
		verdicts[i] = Better
		if (up < down) == c.LowerIsBetter {
			verdicts[i] = Worse
		}
	}
	js := make([]Judgement, len(family))
	for i, p := range Holm(ps) {
		js[i] = Judgement{verdicts[i], p}
		if p > alpha {
			js[i].Verdict = CannotTell
		}
	}
	return js
}

// beyond is the chance of values so high if they lie around the margin.
func beyond(xs []float64, margin float64) float64 {
	shifted := make([]float64, len(xs))
	for i, x := range xs {
		shifted[i] = x - margin
	}
	return SignedRank(shifted)
}

func negated(xs []float64) []float64 {
	ys := make([]float64, len(xs))
	for i, x := range xs {
		ys[i] = -x
	}
	return ys
}

// Holm corrects the chances of a family (Holm 1979): each may be held against the level that is meant for
// all of them together.
func Holm(ps []float64) []float64 {
	order := make([]int, len(ps))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(ps[a], ps[b]) })
	corrected, highest := make([]float64, len(ps)), 0.0
	for rank, i := range order {
		highest = max(highest, min(ps[i]*float64(len(ps)-rank), 1))
		corrected[i] = highest
	}
	return corrected
}

// Narrow tells whether the interval of every comparison is no wider than width (0.04: 4 % of the ratio,
// end to end). It looks at the widths only, not at where the intervals lie, so
// that stopping when it is true favours no verdict.
func Narrow(family []Comparison, width, confidence float64) bool {
	for _, c := range family {
		_, low, high, err := Shift(c.Logs, confidence)
		if err != nil || math.Expm1(high-low) > width {
			return false
		}
	}
	return true
}

// Looks gives the rounds after which to see whether the intervals are narrow enough: each from the
// first on at first, then every tenth part more.
func Looks(first, n int) bool {
	at := first
	for at < n {
		at = max(at+1, at+at/10)
	}
	return at == n
}
