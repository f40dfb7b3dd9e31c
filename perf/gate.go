package perf

import (
	"cmp"
	"fmt"
	"math"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// An Outcome of a gate, for one comparison or for all.
type Outcome string

// The outcomes. Holds is a proof too: the whole interval lies within the margin.
const (
	Holds      Outcome = "holds"
	Regressed  Outcome = "regressed"
	CannotTell Outcome = "cannot tell"
)

// Status is the exit status that says so.
func (o Outcome) Status() int { return map[Outcome]int{Holds: 0, Regressed: 1, CannotTell: 2}[o] }

// A Gate is two evaluations held against each other.
type Gate struct {
	Version    int      `json:"version"`
	Outcome    Outcome  `json:"outcome"`
	MaxRegress float64  `json:"max_regress"` // part: 0.05
	Checks     []Check  `json:"checks"`
	Raw        []Check  `json:"raw"` // the figures themselves: they hold between runs on one machine only and decide nothing
	Notes      []string `json:"notes,omitempty"`
}

// A Check is one path and test. Worse is how much worse the new one is than the old: 0.1 is a
// tenth, below 0 is better, whichever way the figure goes.
type Check struct {
	Path    string     `json:"path"`
	Test    qperf.Test `json:"test"`
	Old     float64    `json:"old"` // median ratio to the base path; of a raw check the median figure
	New     float64    `json:"new"`
	Worse   float64    `json:"worse"`
	Low     float64    `json:"low"` // 95 % interval of Worse
	High    float64    `json:"high"`
	P       float64    `json:"p"` // chance of such rounds if it were within the margin, corrected for all checks
	Outcome Outcome    `json:"outcome"`
}

// Compare holds a new evaluation against an old one. What is compared is first of all the ratio to
// the base path: two machines, or one on two days, differ by more than any regression, and both
// evaluations have measured by how much. A regression counts as proven where the new ratio is
// worse by more than max with 95 % confidence over all checks together (Holm); all holds where every
// 95 % interval ends below max and nothing that was measured is missing.
func Compare(old, recent *Evaluation, max float64) (*Gate, error) {
	for name, e := range map[string]*Evaluation{"the old evaluation": old, "the new evaluation": recent} {
		if err := e.usableForGate(name); err != nil {
			return nil, err
		}
	}
	if old.Base != recent.Base {
		return nil, fmt.Errorf("%w: ratios to %s and to %s", ErrInvalid, old.Base, recent.Base)
	}
	if !(max > 0 && max < 10) {
		return nil, fmt.Errorf("%w: a margin of %g: not above 0", ErrInvalid, max)
	}
	g := &Gate{Version: FormVersion, MaxRegress: max, Notes: differences(old, recent)}
	var ps []float64
	for _, n := range recent.Rows {
		o, ok := old.rowOf(n.Path, n.Test)
		if !ok {
			g.Notes = append(g.Notes, fmt.Sprintf("%s %s is not in the old evaluation", n.Path, n.Test))
			continue
		}
		raw, _ := check(o, n, o.Rounds, n.Rounds, max)
		g.Raw = append(g.Raw, raw)
		if n.Path == recent.Base {
			continue
		}
		c, p := check(o, n, o.Ratios, n.Ratios, max)
		g.Checks, ps = append(g.Checks, c), append(ps, p)
	}
	if len(g.Checks) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, errNothing)
	}
	g.decide(ps)
	g.missing(old, recent)
	return g, nil
}

func (e *Evaluation) rowOf(path string, t qperf.Test) (Row, bool) {
	for _, r := range e.Rows {
		if r.Path == path && r.Test == t {
			return r, true
		}
	}
	return Row{}, false
}

// missing notes what the new evaluation does not have: of a path that is gone nobody can tell that it holds.
func (g *Gate) missing(old, recent *Evaluation) {
	for _, o := range old.Rows {
		if _, ok := recent.rowOf(o.Path, o.Test); ok {
			continue
		}
		g.Notes = append(g.Notes, fmt.Sprintf("%s %s is in the old evaluation only: not checked", o.Path, o.Test))
		if g.Outcome == Holds {
			g.Outcome = CannotTell
		}
	}
}

// check compares two samples of logarithms, turned so that up is worse.
func check(o, n Row, old, recent []float64, max float64) (Check, float64) {
	sign := -1.0
	if n.Test.Latency() {
		sign = 1
	}
	logs := func(xs []float64) []float64 {
		ys := make([]float64, len(xs))
		for i, x := range xs {
			ys[i] = sign * math.Log(x)
		}
		return ys
	}
	was, is := logs(old), logs(recent)
	c := Check{Path: n.Path, Test: n.Test, Old: stats.Median(old), New: stats.Median(recent), Outcome: CannotTell}
	worse, low, high, err := stats.Apart(is, was, Confidence)
	c.Worse = math.Expm1(worse)
	if err != nil { // too few rounds for any interval
		c.Low, c.High = -1, math.MaxFloat64
		return c, 1
	}
	c.Low, c.High = math.Expm1(low), math.Expm1(high)
	margin := math.Log1p(max)
	for i := range is {
		is[i] -= margin
	}
	return c, stats.RankSum(is, was)
}

func (g *Gate) decide(ps []float64) {
	g.Outcome = Holds
	for i, p := range stats.Holm(ps) {
		c := &g.Checks[i]
		c.P = p
		switch {
		case p <= 1-Confidence:
			c.Outcome = Regressed
		case c.High < g.MaxRegress:
			c.Outcome = Holds
		}
		switch {
		case c.Outcome == Regressed:
			g.Outcome = Regressed
		case c.Outcome == CannotTell && g.Outcome == Holds:
			g.Outcome = CannotTell
		}
	}
}

// differences are conditions that were other: a ratio that moved may have moved for them.
func differences(old, recent *Evaluation) (notes []string) {
	note := func(what string, a, b any) {
		if a != b {
			notes = append(notes, fmt.Sprintf("%s: %v, now %v", what, a, b))
		}
	}
	note("seconds of a cell", old.Duration, recent.Duration)
	note("bytes of a datagram", old.Datagram, recent.Datagram)
	for _, n := range recent.Machines {
		for _, o := range old.Machines {
			if o.Path == n.Path {
				note("MTU of "+n.Path, o.MTU, n.MTU)
				note("kernel of "+n.Path, cmp.Or(o.Client.OS, "?"), cmp.Or(n.Client.OS, "?"))
				note("CPU of "+n.Path, cmp.Or(o.Client.CPU, "?"), cmp.Or(n.Client.CPU, "?"))
			}
		}
	}
	return notes
}
