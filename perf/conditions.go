package perf

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// From where on a condition is worth a warning.
const (
	muchSteal   = 0.02  // of the CPUs
	muchLoad    = 0.10  // of the CPUs, by others
	tooMuchLoad = 0.5   // from here on what is measured takes from what is subtracted
	muchLost    = 0.001 // of TCP's segments, sent again
	muchHeldUp  = 0.01  // of the measurements' time, by a CPU limit
	surely      = 0.01  // chance of a trend without one
)

// warnings says what weakens the figures, each in one line.
func warnings(e *Evaluation) []string {
	var ws []string
	add := func(on bool, format string, args ...any) {
		if on {
			ws = append(ws, fmt.Sprintf(format, args...))
		}
	}
	add(e.OneMachine(), "both ends are on one machine: CPU figures are of the whole machine, and the ends compete for it")
	ws = append(ws, endWarnings(e)...)
	used := usage(e)
	add(used.steal > muchSteal, "the hypervisor took %.1f %% of the CPU (steal): the machine is not alone on its host", 100*used.steal)
	add(used.idle && used.others > muchLoad, "other work used %.0f %% of the CPU while nothing was measured", 100*used.others)
	add(used.idle && used.others > tooMuchLoad, "CPU costs are left out: what a path used cannot be told from that")
	add(used.segments > 0 && float64(used.resent)/used.segments > muchLost, "TCP sent %d segments again: packets were lost on the way", used.resent)
	add(used.retried > 0, "%d of %d measurements failed at first and were made again", used.retried, len(e.Cells))
	for at, part := range used.throttled {
		add(part > muchHeldUp, "the CPU limit of the %s' containers held them up for %.0f %% of the time: it is part of the figures", [2]string{"clients", "servers"}[at], 100*part)
	}
	add(used.dropped > 0, "the devices at the paths' ends dropped %d packets", used.dropped)
	return append(ws, trends(e)...)
}

// Floor is what the engine itself takes at the clients' end of the base path, in words; "" where that is not known.
func (e *Evaluation) Floor() string {
	for _, m := range e.Machines {
		if m.Path == e.Base && m.Facts != nil && m.Facts.Local.Floor != nil {
			f := m.Facts.Local.Floor
			return fmt.Sprintf("%s one way over loopback, %.3g us of CPU a message", qperf.TCPLatency.Format(f.Latency), 1e6*f.CPU)
		}
	}
	return ""
}

// An end is one machine of a path.
type end struct {
	node  string
	facts qperf.Facts
}

// endWarnings are of the facts of each end, each once.
func endWarnings(e *Evaluation) (ws []string) {
	seen := map[string]bool{}
	add := func(text string) {
		if !seen[text] {
			seen[text] = true
			ws = append(ws, text)
		}
	}
	mtus := map[int][]string{}
	for _, m := range e.Machines {
		mtus[m.MTU] = append(mtus[m.MTU], m.Path)
		if m.Facts == nil {
			continue
		}
		ends := []end{{m.Client.Node, m.Facts.Local}, {m.Server.Node, m.Facts.Remote}}
		if e.OneMachine() {
			ends = []end{{"this machine", m.Facts.Local}}
		}
		for _, n := range ends {
			node, f := n.node, n.facts
			if f.Governor != "" && f.Governor != "performance" {
				add(fmt.Sprintf("%s: the CPU's frequency governor is %q: its speed follows the load", node, f.Governor))
			}
			if f.CPULimit > 0 && f.CPULimit < float64(f.CPUs) {
				add(fmt.Sprintf("%s: limited to %.3g CPUs of %d", node, f.CPULimit, f.CPUs))
			}
			if f.Load > float64(f.CPUs) {
				add(fmt.Sprintf("%s: a load of %.1f on %d CPUs when the run began", node, f.Load, f.CPUs))
			}
			off := slices.DeleteFunc(slices.Clone(f.Off), func(name string) bool { return name == "gro" }) // no veth has it, unless asked
			if len(off) > 0 {
				add(fmt.Sprintf("%s: %s has no %s", m.Path, f.Device, strings.Join(off, ", ")))
			}
		}
	}
	if len(mtus) > 1 {
		var list []string
		for _, mtu := range sortedKeys(mtus) {
			list = append(list, fmt.Sprintf("%d on %s", mtu, strings.Join(mtus[mtu], ", ")))
		}
		add("the paths' MTUs differ: " + strings.Join(list, "; "))
	}
	slices.Sort(ws)
	return ws
}

func sortedKeys[V any](m map[int]V) []int {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// used is what all cells say together.
type used struct {
	idle              bool
	steal, others     float64 // parts of the CPUs
	resent, dropped   uint64
	retried           int
	segments          float64
	stolen, all, busy float64
	throttled         [2]float64 // parts of the measurements' time: clients, servers
}

func usage(e *Evaluation) (u used) {
	rested, measured := 0.0, 0.0
	for _, c := range e.Cells {
		r := c.Result
		if c.Retried != "" {
			u.retried++
		}
		if r.Local == nil || r.Remote == nil {
			continue
		}
		for _, s := range []*qperf.Stat{r.Local, r.Remote} {
			u.stolen += spent(s, qperf.Steal)
			u.all += spent(s, qperf.Real) * float64(s.CPUs)
			if r.Test == qperf.Rest {
				rested += spent(s, qperf.Real) * float64(s.CPUs)
				for _, kind := range []int{qperf.User, qperf.Nice, qperf.Kernel, qperf.IRQ, qperf.SoftIRQ} {
					u.busy += spent(s, kind)
				}
			}
		}
		measured += spent(r.Local, qperf.Real)
		if g := r.Groups; g != nil {
			for at, end := range []*qperf.GroupTime{g.Local, g.Remote} {
				if end != nil {
					u.throttled[at] += end.Throttled
				}
			}
		}
		if !r.Test.UDP() {
			u.resent += uint64(r.Path.Retransmits)
			u.segments += max(float64(r.Local.Sent.Bytes)/1448, float64(r.Local.Sent.Messages)) // 1448: of a frame of 1514
		}
		if r.Drops != nil {
			u.dropped += r.Drops.Local.Device + r.Drops.Remote.Device
		}
	}
	for at := range u.throttled {
		u.throttled[at] /= max(measured, math.SmallestNonzeroFloat64)
	}
	if u.all > 0 {
		u.steal = u.stolen / u.all
	}
	if rested > 0 {
		u.idle, u.others = true, u.busy/rested
	}
	return u
}

// trends finds tests whose figures rise or fall over the rounds on the base path. Ratios do not
// suffer, the other figures do: a burst credit used up, heat, a neighbour.
func trends(e *Evaluation) (ws []string) {
	var taus, ps []float64
	for _, t := range e.Tests {
		tau, p := stats.Trend(each(e.results(e.Base, t), (*qperf.Result).Value))
		taus, ps = append(taus, tau), append(ps, p)
	}
	for i, p := range stats.Holm(ps) {
		if p < surely {
			way := "rose"
			if taus[i] < 0 {
				way = "fell"
			}
			ws = append(ws, fmt.Sprintf("%s on %s %s over the rounds (tau %.2f): the machine changed while measuring; the ratios allow for it, the medians do not", e.Tests[i], e.Base, way, taus[i]))
		}
	}
	return ws
}
