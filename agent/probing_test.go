package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/podlane/podlane/agent/probe"
	"github.com/podlane/podlane/overlay"
)

// TestJudge: what probes say, and what is done about it.
func TestJudge(t *testing.T) {
	w := overlay.Way{Node: "n2"}
	now := time.Unix(1e9, 0)
	p := newProbing(slog.New(slog.DiscardHandler))
	p.ways = []overlay.Way{w}
	for i, step := range []struct {
		node, direct, vxlan probe.Result
		after               time.Duration
		trusted, soft       bool
	}{
		{probe.Unknown, probe.Unknown, probe.Unknown, 0, false, false},
		{probe.Arrives, probe.Unknown, probe.Arrives, 0, false, false},
		{probe.Arrives, probe.Arrives, probe.Arrives, 0, true, false},
		{probe.Lost, probe.Lost, probe.Unknown, 0, true, false}, // its agent is away
		{probe.Arrives, probe.Lost, probe.Unknown, 0, false, false},
		{probe.Arrives, probe.Lost, probe.Lost, 0, false, true}, // a trial
		{probe.Arrives, probe.Lost, probe.Lost, time.Second, false, true},
		{probe.Arrives, probe.Lost, probe.Lost, trialTime, false, false}, // did not help
		{probe.Arrives, probe.Lost, probe.Lost, time.Second, false, false},
		{probe.Arrives, probe.Lost, probe.Lost, 2 * trialAgain, false, true}, // once more
		{probe.Arrives, probe.Lost, probe.Arrives, time.Second, false, true}, // it helps
		{probe.Arrives, probe.Lost, probe.Lost, 2 * trialAgain, false, true}, // and stays
	} {
		now = now.Add(step.after)
		p.judge(probe.Results{targetName(toNode, w): step.node, targetName(byDirect, w): step.direct, targetName(byVXLAN, w): step.vxlan}, now)
		if p.probed.Direct[w] != step.trusted || p.probed.SoftChecksum != step.soft {
			t.Errorf("step %d: %+v, want trusted %v, soft %v", i, p.probed, step.trusted, step.soft)
		}
	}
	if len(p.problems()) != 2 {
		t.Errorf("%v", p.problems())
	}
}
