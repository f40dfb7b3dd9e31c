package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/report"
)

// perfOutputs are the forms that an evaluation can be written in, each to a file of its own.
type perfOutputs struct{ json, csv, prometheus, html, text string }

func (o *perfOutputs) flags(f *pflag.FlagSet) {
	f.StringVar(&o.json, "json", "", "write everything measured to this file, for perf compare and perf report; - for standard output")
	f.StringVar(&o.csv, "csv", "", "write one line for each measurement to this file")
	f.StringVar(&o.prometheus, "prometheus", "", "write Prometheus' text format to this file (a textfile collector's)")
	f.StringVar(&o.html, "html", "", "write a report with plots to this file: one page, which needs no network")
	f.StringVar(&o.text, "text", "", "write the last round in qperf's own form to this file")
}

// write writes the files asked for, and the table to standard output unless the JSON goes there.
func (o perfOutputs) write(cmd *cobra.Command, e *perf.Evaluation) error {
	about := report.About{Date: e.Date.Format(time.RFC3339), Commands: e.Command}
	var errs []error
	for _, f := range []struct {
		path  string
		write func(io.Writer) error
	}{
		{o.json, e.Save},
		{o.csv, func(w io.Writer) error { return report.CSV(w, e) }},
		{o.prometheus, func(w io.Writer) error { return report.Prometheus(w, e) }},
		{o.html, func(w io.Writer) error { return report.HTML(w, e, about) }},
		{o.text, func(w io.Writer) error { return report.Text(w, e) }},
	} {
		switch f.path {
		case "":
		case "-":
			errs = append(errs, f.write(cmd.OutOrStdout()))
		default:
			errs = append(errs, writeFile(f.path, f.write))
		}
	}
	if o.json != "-" && len(e.Rows) > 0 {
		errs = append(errs, report.Table(cmd.OutOrStdout(), e))
	}
	return errors.Join(errs...)
}

func newPerfReport() *cobra.Command {
	var out perfOutputs
	cmd := &cobra.Command{
		Use:   "report FILE.json",
		Short: "Show an evaluation again: as a table, a page with plots, CSV, Prometheus text, or qperf's own form",
		Example: `  podlane perf report run.json --html run.html
  podlane perf report run.json --prometheus /var/lib/node_exporter/podlane.prom`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := loadEvaluation(args[0])
			if err == nil && e.Invalid != "" {
				err = fmt.Errorf("%w: %s", perf.ErrInvalid, e.Invalid)
			}
			if err == nil {
				err = out.write(cmd, e)
			}
			if err != nil {
				return &exitError{statusInvalid, err}
			}
			return nil
		},
	}
	out.flags(cmd.Flags())
	return cmd
}
