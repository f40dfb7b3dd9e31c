package stats

import (
	"cmp"
	"math"
	"slices"
)

// Rank statistics: what they say of a sample holds whatever the noise is distributed like, as
// long as it is as likely above as below (signed rank: the two values of a round could have
// come the other way round) or alike in both samples (rank sum). Network figures have tails
// that make a t-test blind: one round in which a neighbour took the CPU widens its interval for good.

// exactBelow is the size up to which the distributions of both statistics are counted out;
// above, the normal one is as good.
const exactBelow = 30

// SignedRank is the chance of a sum of ranks of the positive values (Wilcoxon's W+) that is at
// least as high as this one's, were the values symmetric around zero: small when they are
// above. Zeros are left out (Wilcoxon's own rule).
func SignedRank(xs []float64) float64 {
	values := slices.DeleteFunc(slices.Clone(xs), func(x float64) bool { return x == 0 })
	n := len(values)
	if n == 0 {
		return 1
	}
	slices.SortFunc(values, func(a, b float64) int { return cmp.Compare(math.Abs(a), math.Abs(b)) })
	sum, ties := 0, 0.0 // of doubled ranks: a tie's mean rank may be a half
	for i := 0; i < n; {
		j := i
		for j < n && math.Abs(values[j]) == math.Abs(values[i]) {
			j++
		}
		for _, v := range values[i:j] {
			if v > 0 {
				sum += i + 1 + j
			}
		}
		t := float64(j - i)
		ties += t * (t*t - 1)
		i = j
	}
	f := float64(n)
	if n < exactBelow && ties == 0 {
		return 1 - signedRankBelow(n)[sum/2]
	}
	sigma := math.Sqrt(f*(f+1)*(2*f+1)/24 - ties/48)
	return upper((float64(sum)/2 - f*(f+1)/4 - 0.5) / sigma)
}

// signedRankBelow gives, by w, the chance that W+ of n values is below w.
func signedRankBelow(n int) []float64 {
	ways := make([]float64, n*(n+1)/2+1)
	ways[0] = 1
	for rank := 1; rank <= n; rank++ {
		for s := len(ways) - 1; s >= rank; s-- {
			ways[s] += ways[s-rank]
		}
	}
	return cumulated(ways)
}

// cumulated turns counts into the chance of being below each index.
func cumulated(ways []float64) []float64 {
	below, sum := make([]float64, len(ways)+1), 0.0
	for i, w := range ways {
		below[i] = sum
		sum += w
	}
	below[len(ways)] = sum
	for i := range below {
		below[i] /= sum
	}
	return below
}

// Shift is the middle of a sample and the interval that holds that of its population, by
// inverting the signed rank test (Hodges and Lehmann 1963): the middle and the outer ones of
// the means of all pairs. With fewer than six values there is no 95 % interval: ErrTooFew.
func Shift(xs []float64, confidence float64) (middle, low, high float64, err error) {
	n := len(xs)
	means := make([]float64, 0, n*(n+1)/2)
	for i, x := range xs {
		for _, y := range xs[i:] {
			means = append(means, (x+y)/2)
		}
	}
	slices.Sort(means)
	middle = quantileOrZero(means)
	f := float64(n)
	var below []float64
	if n < exactBelow {
		below = signedRankBelow(n)
	}
	cut, ok := cutoff(below, f*(f+1)/4, math.Sqrt(f*(f+1)*(2*f+1)/24), confidence)
	if !ok {
		return middle, 0, 0, ErrTooFew
	}
	return middle, means[cut], means[len(means)-1-cut], nil
}

func quantileOrZero(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return quantile(sorted, 0.5)
}

// cutoff is how many values of either end of an ordered list lie outside the interval: the
// most with P(statistic < cut) at half of what the confidence leaves; false where none may.
// Without an exact distribution, below, it is the normal one's.
func cutoff(below []float64, mean, sigma, confidence float64) (int, bool) {
	half := (1 - confidence) / 2
	if below == nil {
		cut := int(math.Floor(mean - 0.5 - sigma*normalQuantile(1-half)))
		return cut, cut >= 0
	}
	cut := 0
	for cut+1 < len(below) && below[cut+1] <= half {
		cut++
	}
	return cut - 1, cut > 0
}

// RankSum is the chance of the xs ranking at least so high among both samples (Mann and
// Whitney's U), were both the same: small when the xs are above the ys.
func RankSum(xs, ys []float64) float64 {
	u, ties := 0.0, 0.0
	for _, x := range xs {
		for _, y := range ys {
			switch {
			case x > y:
				u++
			case x == y:
				u += 0.5
				ties++
			}
		}
	}
	n, m := float64(len(xs)), float64(len(ys))
	if n*m == 0 {
		return 1
	}
	if len(xs) < exactBelow/2 && len(ys) < exactBelow/2 && ties == 0 {
		return 1 - rankSumBelow(len(xs), len(ys))[int(u)]
	}
	return upper((u - n*m/2 - 0.5) / math.Sqrt(n*m*(n+m+1)/12))
}

// rankSumBelow gives, by u, the chance that U of samples of n and m is below u.
func rankSumBelow(n, m int) []float64 {
	// ways[k][s]: choices of k of the values seen so far whose U so far is s (each value, in
	// order, adds the number of ys before it if it is an x).
	ways := make([][]float64, n+1)
	for k := range ways {
		ways[k] = make([]float64, n*m+1)
	}
	ways[0][0] = 1
	for rank := 0; rank < n+m; rank++ {
		for k := min(n, rank+1); k >= 1; k-- {
			ysBefore := rank - (k - 1)
			if ysBefore > m {
				continue
			}
			for s := n * m; s >= ysBefore; s-- {
				ways[k][s] += ways[k-1][s-ysBefore]
			}
		}
	}
	return cumulated(ways[n])
}

// Apart is by how much xs lie above ys, and the interval of it, by inverting the rank sum
// test: the middle and the outer ones of all differences.
func Apart(xs, ys []float64, confidence float64) (middle, low, high float64, err error) {
	ds := make([]float64, 0, len(xs)*len(ys))
	for _, x := range xs {
		for _, y := range ys {
			ds = append(ds, x-y)
		}
	}
	slices.Sort(ds)
	middle = quantileOrZero(ds)
	n, m := float64(len(xs)), float64(len(ys))
	var below []float64
	if len(xs) < exactBelow/2 && len(ys) < exactBelow/2 {
		below = rankSumBelow(len(xs), len(ys))
	}
	cut, ok := cutoff(below, n*m/2, math.Sqrt(n*m*(n+m+1)/12), confidence)
	if !ok || len(ds) == 0 {
		return middle, 0, 0, ErrTooFew
	}
	return middle, ds[cut], ds[len(ds)-1-cut], nil
}

// upper is the chance of a normal value above z.
func upper(z float64) float64 { return math.Erfc(z/math.Sqrt2) / 2 }

func normalQuantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }
