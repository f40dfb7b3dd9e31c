package perf

import (
	"math"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// family is every comparison of the evaluation: each path but the base, by each test.
func (e *Evaluation) family() []stats.Comparison {
	var all []stats.Comparison
	for _, t := range e.Tests {
		base := each(e.results(e.Base, t), (*qperf.Result).Value)
		for _, p := range e.Paths {
			if p.Name != e.Base {
				all = append(all, compare(each(e.results(p.Name, t), (*qperf.Result).Value), base, t))
			}
		}
	}
	return all
}

func compare(values, base []float64, t qperf.Test) stats.Comparison {
	logs := make([]float64, min(len(values), len(base)))
	for i := range logs {
		logs[i] = math.Log(values[i] / base[i])
	}
	return stats.Comparison{Logs: logs, LowerIsBetter: t.Latency()}
}

// judge gives each row its verdict. Rows come in the order of family, with the base's between. With
// so few rounds that no figures could give one, there is none.
func judge(e *Evaluation, rows []Row) {
	family := e.family()
	if len(family) == 0 || math.Exp2(1-float64(len(family[0].Logs)))*float64(len(family)) > 1-Confidence {
		return
	}
	judgements := stats.Judge(family, 0, 1-Confidence)
	i := 0
	for r := range rows {
		if rows[r].Path != e.Base {
			rows[r].Verdict, rows[r].P = judgements[i].Verdict, judgements[i].P
			i++
		}
	}
}

// wire is a rate of payload with all headers of its frames: Ethernet's 14 bytes, IP's, and
// UDP's or TCP's with its timestamps. It is what a limit on a device counts.
func wire(mtu int, r *qperf.Result, payload float64) float64 {
	if r.Test.Unit() != "bytes/s" || mtu == 0 {
		return 0
	}
	ip := 20
	if r.Path.Control.Addr().Is6() {
		ip = 40
	}
	in := float64(mtu - ip - 32)
	if r.Test.UDP() {
		if in = float64(r.MsgSize); r.MsgSize+ip+8 > mtu {
			return 0 // in fragments
		}
		return payload * (in + float64(ip+8+14)) / in
	}
	return payload * float64(mtu+14) / in
}

func (e *Evaluation) mtu(path string) int {
	for _, m := range e.Machines {
		if m.Path == path {
			return m.MTU
		}
	}
	return 0
}
