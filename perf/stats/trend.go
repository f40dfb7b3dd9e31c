package stats

import "math"

// Trend is Mann and Kendall's test: tau from -1 (falls all the time) to 1 (rises), and the
// two-sided chance of one so strong without a trend. A machine that gets slower block by
// block (heat, spent burst credit, a neighbour waking up) shows here.
func Trend(xs []float64) (tau, p float64) {
	s, pairs := 0.0, 0.0
	for i := range xs {
		for _, later := range xs[i+1:] {
			pairs++
			switch {
			case later > xs[i]:
				s++
			case later < xs[i]:
				s--
			}
		}
	}
	n := float64(len(xs))
	if n < 4 {
		return 0, 1
	}
	z := max(math.Abs(s)-1, 0) / math.Sqrt((n*(n-1)*(2*n+5)-tieTerm(xs))/18)
	if math.IsNaN(z) { // all the same
		return 0, 1
	}
	return s / pairs, 2 * upper(z)
}

func tieTerm(xs []float64) (sum float64) {
	counts := map[float64]float64{}
	for _, x := range xs {
		counts[x]++
	}
	for _, t := range counts {
		sum += t * (t - 1) * (2*t + 5)
	}
	return sum
}
