package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/report"
)

// statusInvalid is the exit status of a run or comparison that came to no result.
const statusInvalid = 3

func newPerfCompare() *cobra.Command {
	var margin, junit string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "compare OLD.json NEW.json",
		Short: "Tell whether a network has become slower: a gate for CI",
		Long: `Hold an evaluation against an earlier one (` + "`--json FILE`" + ` of perf run and lab perf). Ratios to the path from node to node are compared, so
the two may come from different machines or days.

Exit status: 0 every ratio holds; 1 a regression beyond the margin is proven, with 95 % confidence over all paths and tests together; 2 cannot
tell, the rounds are too few or too noisy; 3 the two cannot be compared, or one is invalid.`,
		Example: `  podlane perf compare base.json new.json --max-regress 5%
  podlane perf compare base.json new.json --junit perf.xml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			gate, err := compareFiles(args, margin)
			if junit != "" {
				err = errors.Join(err, writeFile(junit, func(w io.Writer) error { return report.JUnit(w, gate, err) }))
			}
			if err != nil {
				return &exitError{statusInvalid, err}
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), gate)
			} else {
				err = report.GateTable(cmd.OutOrStdout(), gate)
			}
			if err != nil {
				return &exitError{statusInvalid, err}
			}
			if status := gate.Outcome.Status(); status != 0 {
				return &exitError{code: status}
			}
			return nil
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{statusInvalid, err} })
	f := cmd.Flags()
	f.StringVar(&margin, "max-regress", "5%", "how much worse a ratio may be: 5% or 0.05")
	f.StringVar(&junit, "junit", "", "write the outcome as JUnit XML to this file")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func compareFiles(args []string, margin string) (*perf.Gate, error) {
	if len(args) != 2 {
		return nil, errors.New("compare needs two files: the old evaluation and the new one")
	}
	limit, err := parsePart(margin)
	if err != nil {
		return nil, fmt.Errorf("--max-regress %s: %w", margin, err)
	}
	old, err := loadEvaluation(args[0])
	if err != nil {
		return nil, err
	}
	recent, err := loadEvaluation(args[1])
	if err != nil {
		return nil, err
	}
	return perf.Compare(old, recent, limit)
}

// parsePart reads "5%" or "0.05".
func parsePart(text string) (float64, error) {
	digits, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || !(v > 0) {
		return 0, errors.New("not a part above 0, as 5% or 0.05")
	}
	if percent {
		v /= 100
	}
	return v, nil
}

func loadEvaluation(path string) (*perf.Evaluation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	e, err := perf.Load(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return e, nil
}

// writeFile writes a file whole or not at all.
func writeFile(path string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".podlane-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}
