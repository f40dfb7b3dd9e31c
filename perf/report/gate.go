package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/podlane/podlane/perf"
)

// GateTable writes a gate's checks, one line each, the outcome last.
func GateTable(w io.Writer, g *perf.Gate) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "test\tpath\told ratio\tnew ratio\tworse by\t95 % interval\toutcome")
	for _, c := range g.Checks {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Test, c.Path, ratio(c.Old), ratio(c.New), signed(c.Worse), interval(c), c.Outcome)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, n := range g.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	_, err := fmt.Fprintln(w, Sentence(g))
	return err
}

// Sentence is a gate's outcome in words.
func Sentence(g *perf.Gate) string {
	margin := strconv.FormatFloat(100*g.MaxRegress, 'g', 3, 64) + " %"
	switch g.Outcome {
	case perf.Holds:
		return "holds: no ratio is worse by more than " + margin
	case perf.Regressed:
		return "regressed: at least one ratio is worse by more than " + margin
	}
	if !slices.ContainsFunc(g.Checks, func(c perf.Check) bool { return c.Outcome == perf.CannotTell }) {
		return "cannot tell: no ratio that was checked is worse by more than " + margin + ", but the new evaluation lacks some"
	}
	return "cannot tell: an interval reaches over " + margin + "; more rounds make it narrower"
}

func signed(part float64) string {
	return strconv.FormatFloat(100*part, 'f', 1, 64) + " %"
}

func interval(c perf.Check) string {
	if c.High == math.MaxFloat64 {
		return "too few rounds"
	}
	return signed(c.Low) + " .. " + signed(c.High)
}

// The part of JUnit's form that CI servers read.
type (
	junitSuite struct {
		XMLName  xml.Name    `xml:"testsuite"`
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Errors   int         `xml:"errors,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Class   string      `xml:"classname,attr"`
		Name    string      `xml:"name,attr"`
		Failure *junitCause `xml:"failure,omitempty"`
		Error   *junitCause `xml:"error,omitempty"`
		Skipped *junitCause `xml:"skipped,omitempty"`
		Output  string      `xml:"system-out,omitempty"`
	}
	junitCause struct {
		Message string `xml:"message,attr"`
	}
)

// JUnit writes a gate as JUnit does: a proven regression is a failure, "cannot tell" a test
// skipped with its reason. A gate that came to nothing, nil, is one error, cause.
func JUnit(w io.Writer, g *perf.Gate, cause error) error {
	suite := junitSuite{Name: "podlane perf compare"}
	if g == nil {
		suite.Tests, suite.Errors = 1, 1
		suite.Cases = []junitCase{{Class: "podlane.perf", Name: "compare", Error: &junitCause{cause.Error()}}}
	} else {
		for _, c := range g.Checks {
			suite.add(c)
		}
		if g.Outcome == perf.CannotTell && suite.Skipped == 0 {
			suite.Tests, suite.Skipped = suite.Tests+1, 1
			suite.Cases = append(suite.Cases, junitCase{Class: "podlane.perf", Name: "compare", Skipped: &junitCause{Sentence(g)}})
		}
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func (s *junitSuite) add(c perf.Check) {
	text := fmt.Sprintf("worse by %s (95 %% interval %s): ratio %s, was %s", signed(c.Worse), interval(c), ratio(c.New), ratio(c.Old))
	one := junitCase{Class: "podlane.perf." + c.Path, Name: string(c.Test), Output: text}
	s.Tests++
	switch c.Outcome {
	case perf.Regressed:
		s.Failures++
		one.Failure = &junitCause{text}
	case perf.CannotTell:
		s.Skipped++
		one.Skipped = &junitCause{"cannot tell: " + text}
	}
	s.Cases = append(s.Cases, one)
}
