package oracle

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// evenness counts how often each of n endpoints was met, the endpoints in their
// order: by n.
type evenness map[int][]int

func (e evenness) add(backends []netip.AddrPort, met netip.AddrPort) {
	i := slices.Index(backends, met)
	if i < 0 {
		return
	}
	n := len(backends)
	if e[n] == nil {
		e[n] = make([]int, n)
	}
	e[n][i]++
}

// merge adds what another one counted.
func (e evenness) merge(o evenness) {
	for n, counts := range o {
		if e[n] == nil {
			e[n] = make([]int, n)
		}
		for i, c := range counts {
			e[n][i] += c
		}
	}
}

// sigmas says, for each n, by how many standard deviations chi-square is above what
// equally likely endpoints give. Beyond 6 it is no chance.
func (e evenness) sigmas() map[int]float64 {
	out := map[int]float64{}
	for n, counts := range e {
		total := 0
		for _, c := range counts {
			total += c
		}
		if n < 2 || total < 50*n {
			continue
		}
		want, chi := float64(total)/float64(n), 0.0
		for _, c := range counts {
			chi += (float64(c) - want) * (float64(c) - want) / want
		}
		out[n] = (chi - float64(n-1)) / math.Sqrt(2*float64(n-1))
	}
	return out
}

func (e evenness) String() string {
	text := ""
	for n := range 20 {
		if s, ok := e.sigmas()[n]; ok {
			text += fmt.Sprintf(" %d:%v (%.1f)", n, e[n], s)
		}
	}
	return text
}
