// Package report shows an evaluation: as an aligned table for a terminal, and as one HTML file
// that holds everything it needs. It measures nothing and computes nothing beyond what the
// evaluation's rows hold.
package report

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// What the tests are, in words.
var titles = map[qperf.Test]string{
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
	First                       bool // of its test
}

func textRows(e *perf.Evaluation) []textRow {
	var rows []textRow
	last := qperf.Test("")
	for _, r := range e.Rows {
		t := textRow{
			Test: string(r.Test), Title: titles[r.Test], Path: r.Path, First: r.Test != last,
			Median: r.Test.Format(r.Median), Quartiles: r.Test.Format(r.Q1) + " .. " + r.Test.Format(r.Q3),
			Ratio: ratio(r.RatioToNode), Note: note(r),
		}
		if r.RatioLow > 0 {
			t.Interval = ratio(r.RatioLow) + " .. " + ratio(r.RatioHigh)
		}
		if d := r.Distribution; d != nil {
			t.Tail = fmt.Sprintf("P50 %s, P99 %s, P99.9 %s, max %s", r.Test.Format(d.P50), r.Test.Format(d.P99), r.Test.Format(d.P999), r.Test.Format(d.Max))
		}
		rows = append(rows, t)
		last = r.Test
	}
	return rows
}

func ratio(q float64) string {
	if q == 1 {
		return "1"
	}
	return strconv.FormatFloat(q, 'f', 2, 64)
}

func note(r perf.Row) string {
	var notes []string
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
	fmt.Fprintf(tw, "test\tpath\tmedian\tquartiles\tratio to %s\t%.0f %% interval\tnote\n", e.Base, 100*perf.Confidence)
	noted := false
	for _, r := range textRows(e) {
		test := r.Test
		if !r.First {
			test = ""
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", test, r.Path, r.Median, r.Quartiles, r.Ratio, r.Interval, r.Note)
		noted = noted || strings.Contains(r.Note, "quick look")
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if !noted {
		return nil
	}
	_, err := fmt.Fprintln(w, quickLook())
	return err
}
