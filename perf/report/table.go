// Package report shows an evaluation: as an aligned table for a terminal, and as one HTML file
// that holds everything it needs. It measures nothing and computes nothing beyond what the
// evaluation's rows hold.
package report

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// What the tests are, in words.
var titles = map[qperf.Test]string{
	qperf.TCPStreams: "TCP bandwidth of several streams",
	qperf.TCPConnect: "TCP connections made, used and closed",
	qperf.UDPSearch:  "UDP bandwidth without loss",
	qperf.UDPPackets: "UDP packets of 64 bytes",
	qperf.UDPOpen:    "UDP latency at a fixed rate, one way",

	qperf.TCPBandwidth: "TCP bandwidth",
	qperf.TCPLatency:   "TCP latency, one way",
	qperf.UDPBandwidth: "UDP bandwidth, as received",
	qperf.UDPLatency:   "UDP latency, one way",
}

// quickLook is the note under a table that has such rows.
func quickLook() string {
	return fmt.Sprintf("quick look: the interval is wider than %.0f %% of the ratio; more rounds make it narrower", 100*stats.QuickLook)
}

// A cell row as text, the same for the table and the HTML.
type textRow struct {
	Test, Title, Path           string
	Median, Quartiles           string
	Ratio, Interval, Note, Tail string
	Verdict, CPU                string
	First                       bool // of its test
}

func textRows(e *perf.Evaluation) []textRow {
	var rows []textRow
	last := qperf.Test("")
	for _, r := range e.Rows {
		t := textRow{
			Test: string(r.Test), Title: titles[r.Test], Path: r.Path, First: r.Test != last,
			Median: r.Test.Format(r.Median), Quartiles: r.Test.Format(r.Q1) + " .. " + r.Test.Format(r.Q3),
			Ratio: ratio(r.RatioToNode), Note: note(r), Verdict: string(r.Verdict), CPU: cpu(r.CPU),
		}
		if r.RatioLow > 0 {
			t.Interval = ratio(r.RatioLow) + " .. " + ratio(r.RatioHigh)
		}
		if r.Distribution != nil {
			t.Tail = tail(r)
		}
		rows = append(rows, t)
		last = r.Test
	}
	return rows
}

// tail is the distribution in words; in brackets how much a quantile differs between rounds.
func tail(r perf.Row) string {
	d := r.Distribution
	between := func(part float64) string {
		for _, q := range r.Quantiles {
			if q.Part == part && q.High > 0 {
				return fmt.Sprintf(" (%s .. %s)", r.Test.Format(q.Low), r.Test.Format(q.High))
			}
		}
		return ""
	}
	return fmt.Sprintf("P50 %s%s, P99 %s%s, P99.9 %s%s, max %s", r.Test.Format(d.P50), between(0.5), r.Test.Format(d.P99), between(0.99),
		r.Test.Format(d.P999), between(0.999), r.Test.Format(d.Max))
}

// cpu is a cost in words: of each end, and the network's share of it.
func cpu(c *perf.CPUCost) string {
	if c == nil {
		return ""
	}
	three := func(v float64) string { return strconv.FormatFloat(v, 'g', 3, 64) }
	if c.OneMachine {
		return fmt.Sprintf("%s %s (beside the engine %s)", three(c.Client.Total), c.Unit, three(c.Client.Network))
	}
	containers := ""
	if c.Client.Group > 0 && c.Server.Group > 0 {
		containers = fmt.Sprintf("; in their containers %s, %s", three(c.Client.Group), three(c.Server.Group))
	}
	return fmt.Sprintf("client %s, server %s %s (beside the engine %s, %s%s)",
		three(c.Client.Total), three(c.Server.Total), c.Unit, three(c.Client.Network), three(c.Server.Network), containers)
}

func ratio(q float64) string {
	if q == 1 {
		return "1"
	}
	return strconv.FormatFloat(q, 'f', 2, 64)
}

func note(r perf.Row) string {
	var notes []string
	if r.Test == qperf.UDPSearch && r.Low > 0 {
		notes = append(notes, "95 % interval "+r.Test.Format(r.Low)+" .. "+r.Test.Format(r.High))
	}
	if r.HalfPercent > 0 {
		notes = append(notes, "with 0.5 % lost "+r.Test.Format(r.HalfPercent)+halfRatio(r.HalfRatio))
	}
	if r.QuickLook {
		notes = append(notes, "quick look")
	}
	if r.Test.UDP() && r.LossMedian > 0 {
		notes = append(notes, "lost "+percent(r.LossMedian))
	}
	if r.Retransmits > 0 {
		notes = append(notes, fmt.Sprintf("%d retransmits", r.Retransmits))
	}
	return strings.Join(notes, ", ")
}

// halfRatio is empty for the base path.
func halfRatio(q *perf.RatioOf) string {
	if q == nil || q.Low == 0 {
		return ""
	}
	return fmt.Sprintf(" (ratio %s, %s .. %s)", ratio(q.Median), ratio(q.Low), ratio(q.High))
}

// percent keeps a small part from reading as none.
func percent(part float64) string {
	if part < 0.0001 {
		return "< 0.01 %"
	}
	return strconv.FormatFloat(100*part, 'g', 3, 64) + " %"
}

// Table writes one line for each test and path: median, quartiles, ratio to the base path
// with its 95 % interval, and what is to be noted.
func Table(w io.Writer, e *perf.Evaluation) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	verdict := "\tverdict"
	if !slices.ContainsFunc(e.Rows, func(r perf.Row) bool { return r.Verdict != "" }) {
		verdict = ""
	}
	fmt.Fprintf(tw, "test\tpath\tmedian\tquartiles\tratio to %s\t%.0f %% interval%s\tnote\n", e.Base, 100*perf.Confidence, verdict)
	noted := false
	for _, r := range textRows(e) {
		test := r.Test
		if !r.First {
			test = ""
		}
		if verdict != "" {
			r.Interval += "\t" + r.Verdict
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", test, r.Path, r.Median, r.Quartiles, r.Ratio, r.Interval, r.Note)
		noted = noted || strings.Contains(r.Note, "quick look")
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if err := errors.Join(costTable(w, e), stepTable(w, e)); err != nil {
		return err
	}
	var lines []string
	if noted {
		lines = append(lines, quickLook())
	}
	if e.Stopped != "" && e.Budget > 0 {
		lines = append(lines, fmt.Sprintf("%d rounds in %.0f s: %s", e.Rounds, e.Took, e.Stopped))
	}
	if floor := e.Floor(); floor != "" {
		lines = append(lines, "the engine itself: "+floor)
	}
	for _, warning := range e.Warnings {
		lines = append(lines, "warning: "+warning)
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// costTable is the CPU time of each row, where it was measured.
func costTable(w io.Writer, e *perf.Evaluation) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	heading := "\ntest\tpath\tCPU at both ends, less idle\n"
	if e.OneMachine() {
		heading = "\ntest\tpath\tCPU of the whole machine, less idle\n"
	}
	for _, r := range textRows(e) {
		if r.CPU == "" {
			continue
		}
		fmt.Fprintf(tw, "%s%s\t%s\t%s\n", heading, r.Test, r.Path, r.CPU)
		heading = ""
	}
	return tw.Flush()
}

// stepTable is what each part of the way adds.
func stepTable(w io.Writer, e *perf.Evaluation) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, s := range stepRows(e) {
		if i == 0 {
			fmt.Fprintf(tw, "\ntest\tpart of the way\tadds\t%.0f %% interval\tof %s\tratio\t%.0f %% interval\tCPU\n", 100*perf.Confidence, e.Base, 100*perf.Confidence)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", s.Test, s.Part, s.Adds, s.Interval, s.Share, s.Ratio, s.RatioInterval, s.CPU)
	}
	return tw.Flush()
}

// stepRow is a perf.Step as text. Ratio is of the part's two ends, Share of the base path.
type stepRow struct{ Test, Part, Adds, Interval, Share, Ratio, RatioInterval, CPU string }

func stepRows(e *perf.Evaluation) (rows []stepRow) {
	medians := map[qperf.Test]float64{}
	for _, r := range e.Rows {
		if r.Path == e.Base {
			medians[r.Test] = r.Median
		}
	}
	for _, s := range e.Steps {
		row := stepRow{Test: string(s.Test), Part: s.Part, Adds: plus(s.Test, s.Adds)}
		if s.Low != 0 || s.High != 0 {
			row.Interval = plus(s.Test, s.Low) + " .. " + plus(s.Test, s.High)
		}
		if s.Ratio > 0 {
			row.Ratio = ratio(s.Ratio)
		}
		if s.RatioLow > 0 {
			row.RatioInterval = ratio(s.RatioLow) + " .. " + ratio(s.RatioHigh)
		}
		if base := medians[s.Test]; base > 0 {
			row.Share = strconv.FormatFloat(100*s.Adds/base, 'f', 1, 64) + " %"
		}
		if s.Cost != "" {
			row.CPU = strconv.FormatFloat(s.CPU, 'g', 3, 64) + " " + s.Cost
		}
		rows = append(rows, row)
	}
	return rows
}

// plus writes a difference with its sign.
func plus(t qperf.Test, v float64) string {
	if v < 0 {
		return "-" + t.Format(-v)
	}
	return "+" + t.Format(v)
}
