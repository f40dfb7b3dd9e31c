package perf

import (
	"context"
	"math"
	"testing"

	"github.com/podlane/podlane/perf/qperf"
)

// What a part adds and the ratio of its two ends are of the same round: drift far beyond any difference does not show in the ratio.
func TestDecompose(t *testing.T) {
	level := func(round int) float64 { return 1e6 * math.Pow(2, float64(round)) }
	times := func(factor float64) func(int) float64 {
		return func(round int) float64 { return factor * level(round) }
	}
	for rounds, interval := range map[int]bool{8: true, 1: false} {
		e, err := Evaluate(context.Background(), Config{
			Paths: []Path{fake(NodeNode, level), fake(PodPod, times(0.8)), fake(PodServicePod, times(0.6))}, Tests: []qperf.Test{qperf.TCPBandwidth}, Rounds: rounds,
		})
		if err != nil {
			t.Fatal(err)
		}
		e.Decompose([]Part{{"pod network", NodeNode, PodPod}, {"Service translation", PodPod, PodServicePod}, {"of a path that is not there", PodPod, "moon"}})
		if len(e.Steps) != 2 {
			t.Fatalf("%+v", e.Steps)
		}
		for i, want := range []float64{0.8, 0.75} {
			s := e.Steps[i]
			within := s.RatioLow <= want+1e-9 && s.RatioHigh >= want-1e-9 && s.RatioHigh-s.RatioLow < 1e-6
			if math.Abs(s.Ratio-want) > 1e-9 || within != interval || s.Adds >= 0 {
				t.Errorf("%d rounds: %+v, want the ratio %g", rounds, s, want)
			}
		}
	}
}

// Both figures of udp_max are repeated in each round, and have ratios with intervals.
func TestRow_search(t *testing.T) {
	e := &Evaluation{Base: NodeNode, Tests: []qperf.Test{qperf.UDPSearch}}
	for _, p := range []string{NodeNode, PodPod} {
		e.Paths = append(e.Paths, PathInfo{Name: p})
		e.Config.Paths = append(e.Config.Paths, Path{Name: p})
	}
	e.Config.Tests = e.Tests
	for round := 1; round <= 8; round++ {
		level := 1e7 * (1 + 0.1*float64(round))
		for _, c := range []struct {
			path       string
			none, half float64
		}{{NodeNode, level, 1.1 * level}, {PodPod, 0.8 * level, 0.99 * level}} {
			r := &qperf.Result{Test: qperf.UDPSearch, Figures: &qperf.Figures{RecvBandwidth: 1}, Loss: &qperf.Loss{}, Search: &qperf.Search{NoLoss: c.none, HalfPercent: c.half}}
			e.Cells = append(e.Cells, Cell{Round: round, Path: c.path, Result: r})
		}
	}
	rows, err := Rows(e)
	if err != nil {
		t.Fatal(err)
	}
	near := func(v, want float64) bool { return math.Abs(v-want) < 1e-9 }
	base, pod := rows[0], rows[1]
	if !near(pod.RatioToNode, 0.8) || !near(pod.RatioLow, 0.8) || !near(pod.RatioHigh, 0.8) {
		t.Errorf("without loss: %+v", pod)
	}
	if q := pod.HalfRatio; q == nil || !near(q.Median, 0.9) || !near(q.Low, 0.9) || !near(q.High, 0.9) {
		t.Errorf("with half a percent: %+v", q)
	}
	if q := base.HalfRatio; q == nil || q.Median != 1 || q.Low != 0 || math.Abs(base.HalfPercent-1.595e7) > 1 {
		t.Errorf("the base: %+v", base)
	}
	if !(base.Low >= 1.1e7 && base.Low < base.Median && base.High > base.Median && base.High <= 1.8e7) {
		t.Errorf("its own interval: %g .. %g of %g", base.Low, base.High, base.Median)
	}
}
