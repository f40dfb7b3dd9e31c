package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

var (
	//go:embed assets/report.html
	page string
	//go:embed assets/report.css
	style string
	//go:embed assets/report.js
	script string
	//go:embed assets/uPlot.iife.min.js
	plotScript string
	//go:embed assets/uPlot.min.css
	plotStyle string
	//go:embed assets/uPlot.LICENSE
	plotLicence string

	pageTemplate = template.Must(template.New("report").Parse(page))
)

// About is what an evaluation does not know of itself.
type About struct {
	Title    string   // "" means "The cost of a cluster network"
	Date     string   // of the measurement, as it shall be printed
	Version  string   // of podlane
	Facts    []Fact   // further conditions: overlay, nodes, anything
	Commands []string // to repeat the whole evaluation
}

// A Fact is one line of the conditions.
type Fact struct{ Name, Value string }

// HTML writes one self-contained page: tables, plots, conditions and commands. It needs no network and works from a file.
func HTML(w io.Writer, e *perf.Evaluation, about About) error {
	if about.Title == "" {
		about.Title = "The cost of a cluster network"
	}
	quick := false
	for _, r := range e.Rows {
		quick = quick || r.QuickLook
	}
	data := map[string]any{
		"About": about, "Base": e.Base, "Groups": groups(e), "Conditions": conditions(e, about), "Commands": commands(e),
		"Evaluation": plotted(e), "Summary": summary(e),
		"Style": template.CSS(plotStyle + style), "PlotScript": template.JS(plotScript), "Script": template.JS(script),
		"PlotLicence": plotLicence, "Warnings": e.Warnings, "Steps": stepRows(e), "OneMachine": e.OneMachine(), "Rounds": e.Rounds,
		"Invalid": e.Invalid,
	}
	if quick {
		data["QuickLook"] = quickLook()
	}
	return pageTemplate.Execute(w, data)
}

// A group is one test of the page.
type group struct {
	Test, Title string
	Rows        []textRow
	Tails, CPU  bool
	Steps       bool
	Times       bool
}

func groups(e *perf.Evaluation) []group {
	var gs []group
	for _, r := range textRows(e) {
		if r.First {
			gs = append(gs, group{Test: r.Test, Title: r.Title, Tails: r.Tail != ""})
		}
		g := &gs[len(gs)-1]
		g.Rows = append(g.Rows, r)
		g.CPU = g.CPU || r.CPU != ""
	}
	times := overTime(e)
	for i := range gs {
		gs[i].Times = len(times[gs[i].Test]) > 0
	}
	for _, s := range e.Steps {
		for i := range gs {
			gs[i].Steps = gs[i].Steps || gs[i].Test == string(s.Test)
		}
	}
	return gs
}

// plotted is what the page's script gets: the rows, not the cells.
func plotted(e *perf.Evaluation) any {
	costs := map[string]any{}
	for _, r := range e.Rows {
		if bs := bars(r); bs != nil {
			costs[string(r.Test)+" "+r.Path] = map[string]any{"unit": r.CPU.Unit, "bars": bs, "network": r.CPU.Client.Network}
		}
	}
	return map[string]any{"base": e.Base, "rows": e.Rows, "steps": e.Steps, "costs": costs, "times": overTime(e)}
}

// overTime is the figure of each part of each measurement: by test and path, the seconds from the start of the run and the figure.
func overTime(e *perf.Evaluation) map[string]map[string][][2]float64 {
	times := map[string]map[string][][2]float64{}
	for _, c := range e.Cells {
		s := c.Result.Series
		if s == nil || s.Every <= 0 {
			continue
		}
		test := string(c.Result.Test)
		if times[test] == nil {
			times[test] = map[string][][2]float64{}
		}
		for i, n := range s.Messages {
			if v, ok := c.Result.Part(n); ok {
				at := c.At + e.Warmup + (float64(i)+0.5)*s.Every
				times[test][c.Path] = append(times[test][c.Path], [2]float64{math.Round(1000*at) / 1000, digits4(v)})
			}
		}
	}
	return times
}

// digits4 keeps the page small.
func digits4(v float64) float64 {
	short, _ := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 4, 64), 64)
	return short
}

func summary(e *perf.Evaluation) string {
	why := ""
	if e.Budget > 0 && e.Stopped != "" {
		why = " It stopped because " + e.Stopped + "."
	}
	return fmt.Sprintf("%d rounds of %.3g s a cell after %.3g s of warm-up; in each round every path once by every test, in random order (seed %d). Ratios are to %s of the same round; took %.0f s.",
		e.Rounds, e.Duration, e.Warmup, e.Seed, e.Base, e.Took) + why
}

func conditions(e *perf.Evaluation, about About) []Fact {
	var facts []Fact
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, Fact{name, value})
		}
	}
	add("date", about.Date)
	add("podlane", about.Version)
	for _, m := range e.Machines {
		ends := m.Client.Node
		if m.Server.Node != m.Client.Node {
			ends += " to " + m.Server.Node
		}
		add(m.Path, fmt.Sprintf("%s, MTU %d", ends, m.MTU))
	}
	add("CPU", distinct(e, func(m perf.Machine) []string { return []string{m.Client.CPU, m.Server.CPU} }))
	add("kernel", distinct(e, func(m perf.Machine) []string { return []string{m.Client.OS, m.Server.OS} }))
	add("governor", distinct(e, func(m perf.Machine) []string { return factsOf(m, func(f qperf.Facts) string { return f.Governor }) }))
	add("clock source", distinct(e, func(m perf.Machine) []string { return factsOf(m, func(f qperf.Facts) string { return f.Clock }) }))
	add("devices", distinct(e, func(m perf.Machine) []string { return factsOf(m, device) }))
	add("load when it began", distinct(e, func(m perf.Machine) []string {
		if m.Path != e.Base { // every path's conf reads it anew
			return nil
		}
		return factsOf(m, func(f qperf.Facts) string { return fmt.Sprintf("%.2f on %d CPUs", f.Load, f.CPUs) })
	}))
	add("offloads off", distinct(e, func(m perf.Machine) []string {
		return factsOf(m, func(f qperf.Facts) string { return strings.Join(f.Off, ", ") })
	}))
	add("the engine itself", e.Floor())
	if len(e.Cells) > 0 {
		add("CPU taken by the hypervisor", fmt.Sprintf("%.1f %%", 100*e.Steal))
		add("CPU used by other work", fmt.Sprintf("%.0f %%", 100*e.Others))
	}
	add("datagrams", fmt.Sprintf("%d bytes in udp_bw", e.Datagram))
	for _, n := range e.Notes {
		add(n.Name, n.Value)
	}
	return append(facts, about.Facts...)
}

func factsOf(m perf.Machine, of func(qperf.Facts) string) []string {
	if m.Facts == nil {
		return nil
	}
	return []string{of(m.Facts.Local), of(m.Facts.Remote)}
}

// device is that of an end, as its driver describes it.
func device(f qperf.Facts) string {
	if f.Device == "" || f.Driver == "" {
		return f.Device
	}
	if f.Speed == 0 {
		return fmt.Sprintf("%s (%s)", f.Device, f.Driver)
	}
	return fmt.Sprintf("%s (%s, %d Mbit/s)", f.Device, f.Driver, f.Speed)
}

// distinct gives each different value once.
func distinct(e *perf.Evaluation, of func(perf.Machine) []string) string {
	var all []string
	seen := map[string]bool{"": true}
	for _, m := range e.Machines {
		for _, v := range of(m) {
			if !seen[v] {
				seen[v] = true
				all = append(all, v)
			}
		}
	}
	return strings.Join(all, "; ")
}

// commands are those of single cells, one for each path.
func commands(e *perf.Evaluation) []Fact {
	var facts []Fact
	for _, p := range e.Config.Paths {
		facts = append(facts, Fact{p.Name, e.CommandOf(p.Name, e.Config.Tests[0])})
	}
	return facts
}
