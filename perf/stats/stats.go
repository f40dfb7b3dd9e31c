// Package stats turns rounds of measurements into medians, quartiles and ratios with
// intervals. It does no I/O and reads no clock, and it is not a statistics library: it has
// what an evaluation of paired, interleaved rounds needs.
package stats

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// QuickLook is the width of an interval, as a part of the ratio, above which the ratio is
// no more than a quick look.
const QuickLook = 0.10

// ErrTooFew is a sample too small for an interval.
var ErrTooFew = errors.New("an interval needs two rounds at least")

// A Summary is the middle and the spread of one sample.
type Summary struct {
	N                        int
	Min, Q1, Median, Q3, Max float64
}

// Summarize orders a sample; the zero Summary for an empty one.
func Summarize(xs []float64) Summary {
	if len(xs) == 0 {
		return Summary{}
	}
	s := slices.Sorted(slices.Values(xs))
	return Summary{len(s), s[0], quantile(s, 0.25), quantile(s, 0.5), quantile(s, 0.75), s[len(s)-1]}
}

// Median of a sample, 0 for an empty one.
func Median(xs []float64) float64 { return Summarize(xs).Median }

// quantile interpolates between the two nearest of an ordered sample (type 7 of Hyndman and Fan 1996, as R and NumPy do).
func quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// A Ratio is one path against another, paired round by round: what changes from round to
// round but is the same for both paths within one cancels.
type Ratio struct {
	Rounds []float64 // ratio of each round
	Median float64
	Low    float64 // interval of the typical ratio, from t on the logarithms
	High   float64
}

// Paired gives the ratios of the rounds, their median, and the interval that holds the
// typical ratio with the given confidence (0.95). The interval is that of the signed rank test on
// the logarithms, which one wild round does not spoil; below six rounds, too few for it, Student's
// t, because a bootstrap has too few values to draw from and comes out too narrow. A value that
// is not above zero has no ratio and is an error.
func Paired(values, base []float64, confidence float64) (Ratio, error) {
	if len(values) != len(base) {
		return Ratio{}, fmt.Errorf("%d rounds against %d", len(values), len(base))
	}
	r := Ratio{Rounds: make([]float64, len(values))}
	logs := make([]float64, len(values))
	for i, v := range values {
		q := v / base[i]
		if !(v > 0 && base[i] > 0) || math.IsInf(q, 0) {
			return Ratio{}, fmt.Errorf("round %d: no ratio of %g to %g", i+1, v, base[i])
		}
		r.Rounds[i], logs[i] = q, math.Log(q)
	}
	r.Median = Median(r.Rounds)
	_, low, high, err := Shift(logs, confidence)
	if err != nil {
		low, high, err = Mean(logs, confidence)
	}
	if err != nil {
		return r, err
	}
	r.Low, r.High = min(math.Exp(low), r.Median), max(math.Exp(high), r.Median)
	return r, nil
}

// Width of the interval as a part of the ratio.
func (r Ratio) Width() float64 { return (r.High - r.Low) / r.Median }

// QuickLook tells whether the interval is too wide, or missing, to lean on.
func (r Ratio) QuickLook() bool { return r.Low <= 0 || r.Width() > QuickLook }

// Mean gives the interval that holds the mean of the population a sample came from.
func Mean(xs []float64, confidence float64) (low, high float64, err error) {
	n := float64(len(xs))
	if n < 2 {
		return 0, 0, ErrTooFew
	}
	mean, squares := 0.0, 0.0
	for _, x := range xs {
		mean += x / n
	}
	for _, x := range xs {
		squares += (x - mean) * (x - mean)
	}
	half := StudentT(1-(1-confidence)/2, n-1) * math.Sqrt(squares/(n-1)/n)
	return mean - half, mean + half, nil
}

// Proportion is the interval that holds a part of which k of n were seen (Wilson 1927): unlike
// the textbook's it is right for none of a few, and never below 0 or above 1.
func Proportion(k, n uint64, confidence float64) (low, high float64) {
	if n == 0 {
		return 0, 1
	}
	z, m := normalQuantile(1-(1-confidence)/2), float64(n)
	p := float64(k) / m
	centre := (p + z*z/(2*m)) / (1 + z*z/m)
	half := z / (1 + z*z/m) * math.Sqrt(p*(1-p)/m+z*z/(4*m*m))
	return max(centre-half, 0), min(centre+half, 1)
}
