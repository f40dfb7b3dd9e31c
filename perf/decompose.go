package perf

import (
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// A Part is one part of the way: what To has and From has not.
type Part struct {
	Name     string // "veth and routing"
	From, To string // names of paths
}

// A Step is what a Part adds to a test's figure: the difference of the two paths in the same
// round. Parts in a row add up to the difference of the first path and the last.
type Step struct {
	Test   qperf.Test `json:"test"`
	Part   string     `json:"part"`
	From   string     `json:"from"`
	To     string     `json:"to"`
	Unit   string     `json:"unit"`
	Before float64    `json:"before"` // the figure of From, median
	Adds   float64    `json:"adds"`   // the typical difference
	Low    float64    `json:"low"`    // 95 % interval of it; 0 and 0 with fewer than six rounds
	High   float64    `json:"high"`
	// Ratio is the median over the rounds of To's figure to From's of the same round, with its 95 % interval.
	Ratio     float64 `json:"ratio,omitempty"`
	RatioLow  float64 `json:"ratio_low,omitempty"`
	RatioHigh float64 `json:"ratio_high,omitempty"`

	CPU  float64 `json:"cpu,omitempty"` // what it adds to the CPU cost of both ends
	Cost string  `json:"cpu_unit,omitempty"`
}

// Decompose says which parts the way has; the evaluation's Steps are made of them.
func (e *Evaluation) Decompose(parts []Part) {
	e.parts = parts
	e.Steps = e.decompose(parts)
}

func (e *Evaluation) decompose(parts []Part) (steps []Step) {
	for _, t := range e.Tests {
		for _, p := range parts {
			from, to := each(e.results(p.From, t), (*qperf.Result).Value), each(e.results(p.To, t), (*qperf.Result).Value)
			if len(from) == 0 || len(from) != len(to) {
				continue
			}
			ds := make([]float64, len(from))
			for i := range ds {
				ds[i] = to[i] - from[i]
			}
			s := Step{Test: t, Part: p.Name, From: p.From, To: p.To, Unit: t.Unit(), Before: stats.Median(from)}
			s.Adds, s.Low, s.High, _ = stats.Shift(ds, Confidence) // too few rounds: no interval
			ratio, _ := stats.Paired(to, from, Confidence)         // likewise
			s.Ratio, s.RatioLow, s.RatioHigh = ratio.Median, ratio.Low, ratio.High
			if a, b := e.cpuCost(p.From, t), e.cpuCost(p.To, t); a != nil && b != nil {
				s.CPU, s.Cost = b.total()-a.total(), a.Unit
			}
			steps = append(steps, s)
		}
	}
	return steps
}

func (c *CPUCost) total() float64 {
	if c.Server == nil {
		return c.Client.Total
	}
	return c.Client.Total + c.Server.Total
}
