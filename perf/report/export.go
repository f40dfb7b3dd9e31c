package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

func number(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// CSV writes one line for each cell, with the raw figures: what a spreadsheet or a notebook starts from.
func CSV(w io.Writer, e *perf.Evaluation) error {
	out := csv.NewWriter(w)
	_ = out.Write([]string{
		"round", "test", "path", "value", "unit", "msg_size", "seconds", "sent_messages", "received_messages", "lost_part",
		"p50", "p99", "p99_9", "max", "retransmits", "client_cpu_seconds", "server_cpu_seconds", "client_steal_part", "source_seen", "server_address",
	})
	for _, c := range e.Cells {
		r := c.Result
		if r.Figures == nil || r.Local == nil || r.Remote == nil {
			continue
		}
		lost, tail := "", [4]string{}
		if r.Loss != nil {
			lost = number(r.Loss.Fraction)
		}
		if d := r.Latency; d != nil {
			tail = [4]string{number(d.P50), number(d.P99), number(d.P999), number(d.Max)}
		}
		steal := float64(r.Local.End[qperf.Steal]-r.Local.Start[qperf.Steal]) / float64(max(r.Local.End[qperf.Real]-r.Local.Start[qperf.Real], 1)) / float64(max(r.Local.CPUs, 1))
		_ = out.Write([]string{
			strconv.Itoa(c.Round), string(r.Test), c.Path, number(r.Value()), r.Test.Unit(), strconv.Itoa(r.MsgSize), number(r.Figures.Local.RealTime),
			strconv.FormatUint(r.Local.Sent.Messages, 10), strconv.FormatUint(r.Remote.Received.Messages, 10), lost,
			tail[0], tail[1], tail[2], tail[3], strconv.Itoa(int(r.Path.Retransmits)),
			number(r.Figures.Local.CPUTime), number(r.Figures.Remote.CPUTime), number(steal), r.Path.SeenByPeer.String(), r.Path.PeerLocal.String(),
		})
	}
	out.Flush()
	return out.Error()
}

// A metric is one name of the Prometheus text and its lines.
type metric struct{ name, help, lines string }

func (m *metric) add(labels string, v float64) {
	m.lines += fmt.Sprintf("%s{%s} %s\n", m.name, labels, number(v))
}

// Prometheus writes the evaluation in Prometheus' text format, for a textfile collector or a
// push gateway: gauges in base units (seconds, bytes a second).
func Prometheus(w io.Writer, e *perf.Evaluation) error {
	figures := map[string]*metric{
		"bytes/s":   {name: "podlane_perf_bandwidth_bytes_per_second", help: "Payload received, median of the rounds."},
		"s":         {name: "podlane_perf_latency_seconds", help: "Time of one way, median of the rounds' means."},
		"1/s":       {name: "podlane_perf_connections_per_second", help: "TCP connections made, used and closed, median of the rounds."},
		"packets/s": {name: "podlane_perf_packets_per_second", help: "Datagrams received, median of the rounds."},
	}
	ratios := &metric{name: "podlane_perf_ratio", help: "To the base path in the same round: median and the ends of its 95 % interval."}
	tails := &metric{name: "podlane_perf_latency_quantile_seconds", help: "Time of one way over all messages of all rounds."}
	cpu := &metric{name: "podlane_perf_cpu_cost", help: "CPU time by kind, less idle, in the unit of its label."}
	loss := &metric{name: "podlane_perf_loss_part", help: "Part of the datagrams lost, median of the rounds."}
	for _, r := range e.Rows {
		of := fmt.Sprintf("path=%q,test=%q", escape(r.Path), escape(string(r.Test)))
		figures[r.Unit].add(of, r.Median)
		ratios.add(of+`,bound="median"`, r.RatioToNode)
		if r.RatioLow > 0 {
			ratios.add(of+`,bound="low"`, r.RatioLow)
			ratios.add(of+`,bound="high"`, r.RatioHigh)
		}
		if d := r.Distribution; d != nil {
			tails.add(of+`,quantile="0.5"`, d.P50)
			tails.add(of+`,quantile="0.99"`, d.P99)
			tails.add(of+`,quantile="0.999"`, d.P999)
			tails.add(of+`,quantile="1"`, d.Max)
		}
		if r.Test.UDP() {
			loss.add(of, r.LossMedian)
		}
		for _, b := range bars(r) {
			for _, k := range b.Kinds {
				cpu.add(fmt.Sprintf("%s,end=%q,kind=%q,unit=%q", of, b.End, k.Name, r.CPU.Unit), k.Value)
			}
		}
	}
	run := &metric{name: "podlane_perf_run_timestamp_seconds", help: "When the evaluation began."}
	run.lines = fmt.Sprintf("%s %d\n", run.name, e.Date.Unix())
	for _, m := range []*metric{figures["bytes/s"], figures["s"], figures["1/s"], figures["packets/s"], ratios, tails, loss, cpu, run} {
		if m.lines == "" {
			continue
		}
		if _, err := fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n%s", m.name, m.help, m.name, m.lines); err != nil {
			return err
		}
	}
	return nil
}

// escape leaves to %q only what Prometheus' own escapes cover.
func escape(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Text writes each path's last round in the form of qperf's own output, and what conf says of its ends.
func Text(w io.Writer, e *perf.Evaluation) error {
	for _, p := range e.Paths {
		if _, err := fmt.Fprintf(w, "# %s (%s), round %d\n", p.Name, p.Address, e.Rounds); err != nil {
			return err
		}
		for _, m := range e.Machines {
			if m.Path != p.Name {
				continue
			}
			conf := qperf.Result{Test: qperf.Conf, Conf: &qperf.Machines{Local: m.Client, Remote: m.Server}}
			if err := conf.WriteText(w, qperf.Detail{}); err != nil {
				return err
			}
		}
		for _, t := range e.Tests {
			for i := len(e.Cells) - 1; i >= 0; i-- {
				if c := e.Cells[i]; c.Path == p.Name && c.Result.Test == t {
					if err := c.Result.WriteText(w, qperf.Detail{Stat: 1, Time: 1}); err != nil {
						return err
					}
					break
				}
			}
		}
	}
	return nil
}

// A bar is the CPU cost of one end of a row, by kind.
type bar struct {
	End   string     `json:"end"`
	Kinds []barPiece `json:"kinds"`
}

type barPiece struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
}

func bars(r perf.Row) (bs []bar) {
	if r.CPU == nil {
		return nil
	}
	one := func(end string, k *perf.CPUKinds) {
		if k != nil {
			bs = append(bs, bar{end, []barPiece{{"user", k.User}, {"system", k.System}, {"softirq", k.SoftIRQ}, {"irq", k.IRQ}, {"steal", k.Steal}}})
		}
	}
	client := "client"
	if r.CPU.OneMachine {
		client = "machine"
	}
	one(client, r.CPU.Client)
	one("server", r.CPU.Server)
	return bs
}
