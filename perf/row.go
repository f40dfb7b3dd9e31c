package perf

import (
	"errors"
	"fmt"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// Confidence of every interval.
const Confidence = 0.95

// A Row is one path and test over all rounds. Bandwidth is what was received.
type Row struct {
	Path   string     `json:"path"`
	Test   qperf.Test `json:"test"`
	Median float64    `json:"median"`
	Q1     float64    `json:"q1"`
	Q3     float64    `json:"q3"`
	Low    float64    `json:"low,omitempty"` // 95 % interval of the typical round's figure; none with fewer than six
	High   float64    `json:"high,omitempty"`
	Unit   string     `json:"unit"` // "bytes/s" or "s" (one way)
	// RatioToNode is the median over the rounds of this path's figure to node to node's of the same round.
	RatioToNode float64   `json:"ratio_to_node"`
	RatioLow    float64   `json:"ratio_low,omitempty"` // 95 % interval; of the base itself there is none
	RatioHigh   float64   `json:"ratio_high,omitempty"`
	QuickLook   bool      `json:"quick_look"` // the interval is wider than 10 % of the ratio
	Rounds      []float64 `json:"rounds"`     // the figure of each round
	Ratios      []float64 `json:"ratios"`     // its ratio

	// Verdict against the base, corrected for all comparisons of the evaluation, and P, the chance of
	// such rounds without a difference; both empty for the base, and with too few rounds for any.
	Verdict stats.Verdict `json:"verdict,omitempty"`
	P       float64       `json:"p,omitempty"`

	Wire         float64             `json:"wire,omitempty"`         // bandwidth: Median with the headers down to Ethernet's, bytes/s
	HalfPercent  float64             `json:"half_percent,omitempty"` // udp_max: the median rate with 0.5 % of loss, bytes/s
	HalfRatio    *RatioOf            `json:"half_percent_ratio,omitempty"`
	CPU          *CPUCost            `json:"cpu,omitempty"`
	MsgSize      int                 `json:"msg_size"`               // bytes
	SendMedian   float64             `json:"send_median,omitempty"`  // udp_bw: bytes/s that left the client
	LossMedian   float64             `json:"loss_median,omitempty"`  // UDP: part of the datagrams
	SendCost     float64             `json:"send_cost,omitempty"`    // bandwidth: CPU s/GB, the client's whole machine
	RecvCost     float64             `json:"recv_cost,omitempty"`    // and the server's; where both are one machine, the same twice
	Retransmits  uint64              `json:"retransmits,omitempty"`  // TCP: segments, all rounds
	Distribution *qperf.Distribution `json:"distribution,omitempty"` // latency: all rounds together
	Quantiles    []Quantile          `json:"quantiles,omitempty"`    // latency: how much they differ between rounds
}

// RatioOf is a figure's ratio to the base path's of the same round: the median of the rounds, and the 95 % interval.
type RatioOf struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low,omitempty"` // of the base itself there is none
	High   float64 `json:"high,omitempty"`
}

// A Quantile is what one part of the messages took at most, of each round by itself: the median of the rounds and
// the 95 % interval of the typical round's; there is none with fewer than six.
type Quantile struct {
	Part   float64 `json:"part"`   // 0.99
	Median float64 `json:"median"` // seconds, one way
	Low    float64 `json:"low,omitempty"`
	High   float64 `json:"high,omitempty"`
}

func quantiles(results []*qperf.Result) (qs []Quantile) {
	for _, of := range []struct {
		part float64
		of   func(*qperf.Distribution) float64
	}{
		{0.5, func(d *qperf.Distribution) float64 { return d.P50 }}, {0.9, func(d *qperf.Distribution) float64 { return d.P90 }},
		{0.99, func(d *qperf.Distribution) float64 { return d.P99 }}, {0.999, func(d *qperf.Distribution) float64 { return d.P999 }},
	} {
		xs := each(results, func(r *qperf.Result) float64 { return of.of(r.Latency) })
		q := Quantile{Part: of.part, Median: stats.Median(xs)}
		if _, low, high, err := stats.Shift(xs, Confidence); err == nil {
			q.Low, q.High = low, high
		}
		qs = append(qs, q)
	}
	return qs
}

// Rows makes the rows of an evaluation's cells, in the order of its tests and paths.
func Rows(e *Evaluation) ([]Row, error) {
	var rows []Row
	for _, t := range e.Config.Tests {
		base := e.results(e.Base, t)
		for _, p := range e.Config.Paths {
			row, err := e.row(p.Name, t, base)
			if err != nil {
				return nil, fmt.Errorf("%s %s: %w", p.Name, t, err)
			}
			rows = append(rows, row)
		}
	}
	judge(e, rows)
	return rows, nil
}

// results gives those of one path and test, by round.
func (e *Evaluation) results(path string, t qperf.Test) []*qperf.Result {
	var rs []*qperf.Result
	for _, c := range e.Cells {
		if c.Path == path && c.Result.Test == t {
			rs = append(rs, c.Result)
		}
	}
	return rs
}

func (e *Evaluation) row(path string, t qperf.Test, base []*qperf.Result) (Row, error) {
	results := e.results(path, t)
	row := Row{Path: path, Test: t, Unit: t.Unit(), Rounds: each(results, (*qperf.Result).Value), MsgSize: results[0].MsgSize}
	s := stats.Summarize(row.Rounds)
	row.Median, row.Q1, row.Q3 = s.Median, s.Q1, s.Q3
	if _, low, high, err := stats.Shift(row.Rounds, Confidence); err == nil {
		row.Low, row.High = min(low, s.Median), max(high, s.Median)
	}
	ratio, err := stats.Paired(row.Rounds, each(base, (*qperf.Result).Value), Confidence)
	if err != nil && !errors.Is(err, stats.ErrTooFew) {
		return row, err
	}
	row.RatioToNode, row.Ratios = ratio.Median, ratio.Rounds
	if path != e.Base {
		row.RatioLow, row.RatioHigh, row.QuickLook = ratio.Low, ratio.High, ratio.QuickLook()
	}
	row.Wire = wire(e.mtu(path), results[0], row.Median)
	row.CPU = e.cpuCost(path, t)
	if t == qperf.UDPSearch {
		return row, row.halfPercent(results, base, path == e.Base)
	}
	return row, row.extras(results)
}

// halfPercent is the second figure of udp_max.
func (row *Row) halfPercent(results, base []*qperf.Result, isBase bool) error {
	of := func(r *qperf.Result) float64 { return r.Search.HalfPercent }
	row.LossMedian = stats.Median(each(results, func(r *qperf.Result) float64 { return r.Loss.Fraction }))
	row.HalfPercent = stats.Median(each(results, of))
	q, err := stats.Paired(each(results, of), each(base, of), Confidence)
	if err != nil && !errors.Is(err, stats.ErrTooFew) {
		return fmt.Errorf("with 0.5 %% of loss: %w", err)
	}
	row.HalfRatio = &RatioOf{Median: q.Median}
	if !isBase {
		row.HalfRatio.Low, row.HalfRatio.High = q.Low, q.High
	}
	return nil
}

func (row *Row) extras(results []*qperf.Result) error {
	for _, r := range results {
		row.Retransmits += uint64(r.Path.Retransmits)
	}
	if row.Test.UDP() {
		row.LossMedian = stats.Median(each(results, func(r *qperf.Result) float64 { return r.Loss.Fraction }))
	}
	if row.Test.Latency() {
		row.Quantiles = quantiles(results)
		var err error
		if row.Distribution, err = merged(results); err == nil {
			row.Distribution.HDR = "" // the cells have it
		}
		return err
	}
	row.SendCost = stats.Median(each(results, func(r *qperf.Result) float64 { return r.Figures.SendCost }))
	row.RecvCost = stats.Median(each(results, func(r *qperf.Result) float64 { return r.Figures.RecvCost }))
	if row.Test.UDP() {
		row.SendMedian = stats.Median(each(results, func(r *qperf.Result) float64 { return r.Figures.SendBandwidth }))
	}
	return nil
}

// merged adds up the histograms of all rounds: a percentile of percentiles, or of means, would be none.
func merged(results []*qperf.Result) (*qperf.Distribution, error) {
	var all *hdrhistogram.Histogram
	for _, r := range results {
		h, err := hdrhistogram.Decode([]byte(r.Latency.HDR))
		if err != nil {
			return nil, fmt.Errorf("histogram: %w", err)
		}
		if all == nil {
			all = h
		} else if dropped := all.Merge(h); dropped > 0 {
			return nil, fmt.Errorf("histogram: %d values do not fit", dropped)
		}
	}
	d := qperf.NewDistribution(all)
	d.Curve = qperf.Curve(all)
	return d, nil
}

func each(results []*qperf.Result, f func(*qperf.Result) float64) []float64 {
	xs := make([]float64, len(results))
	for i, r := range results {
		xs[i] = f(r)
	}
	return xs
}
