package agent

import (
	"log/slog"
	"testing"
	"time"

	"github.com/podlane/podlane/agent/probe"
	"github.com/podlane/podlane/kernel/link"
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
		{probe.Arrives, probe.Lost, probe.Lost, 2 * trialAgain, false, true},    // once more
		{probe.Arrives, probe.Lost, probe.Arrives, time.Second, false, false},   // it arrives: also without?
		{probe.Arrives, probe.Lost, probe.Lost, time.Second, false, true},       // no
		{probe.Arrives, probe.Lost, probe.Arrives, time.Second, false, true},    // it helps
		{probe.Arrives, probe.Lost, probe.Lost, 2 * trialAgain, false, true},    // and stays
		{probe.Lost, probe.Lost, probe.Lost, 2 * trialAgain, false, true},       // whatever
		{probe.Arrives, probe.Lost, probe.Arrives, 2 * trialAgain, false, true}, // comes
		{probe.Arrives, probe.Unknown, probe.Unknown, trialAgain, false, true},  // then
		{probe.Unknown, probe.Unknown, probe.Unknown, trialAgain, false, true},  //
		{probe.Arrives, probe.Lost, probe.Lost, 2 * trialAgain, false, true},    //
	} {
		now = now.Add(step.after)
		p.judge(results(w, step.node, step.direct, step.vxlan), now)
		if p.probed.Direct[w] != step.trusted || p.probed.SoftChecksum != step.soft {
			t.Errorf("step %d: %+v, want trusted %v, soft %v", i, p.probed, step.trusted, step.soft)
		}
	}
	if len(p.problems()) != 2 {
		t.Errorf("%v", p.problems())
	}
}

func results(w overlay.Way, node, direct, vxlan probe.Result) probe.Results {
	return probe.Results{targetName(toNode, w): node, targetName(byDirect, w): direct, targetName(byVXLAN, w): vxlan}
}

// TestChecksums: software checksums stay on only where they are what helps.
func TestChecksums(t *testing.T) {
	w := overlay.Way{Node: "n2"}
	type step struct {
		node, vxlan probe.Result
		after       time.Duration
		soft        bool
	}
	for name, c := range map[string]struct {
		adopted bool
		steps   []step
	}{
		"it recovers by itself": {false, []step{
			{probe.Arrives, probe.Lost, 0, true},
			{probe.Arrives, probe.Arrives, time.Second, false},
			{probe.Arrives, probe.Arrives, 2 * trialTime, false}, // arrives without them
			{probe.Arrives, probe.Lost, time.Second, false},      // too soon
			{probe.Arrives, probe.Lost, trialSoon, true},
		}},
		"the peer goes away": {false, []step{
			{probe.Arrives, probe.Lost, 0, true},
			{probe.Lost, probe.Lost, time.Second, true},
			{probe.Lost, probe.Lost, trialTime, false},
			{probe.Arrives, probe.Lost, trialSoon, true}, // that was no verdict
		}},
		"the peer goes away while they are off": {false, []step{
			{probe.Arrives, probe.Lost, 0, true},
			{probe.Arrives, probe.Arrives, time.Second, false},
			{probe.Lost, probe.Lost, 2 * trialTime, false},
			{probe.Arrives, probe.Arrives, time.Second, false},
		}},
		"the peer's object goes away": {false, []step{
			{probe.Arrives, probe.Lost, 0, true},
			{probe.Unknown, probe.Unknown, 2 * trialTime, false},
		}},
		"it is lost for good the second time": {false, []step{
			{probe.Arrives, probe.Lost, 0, true},
			{probe.Arrives, probe.Arrives, time.Second, false},
			{probe.Arrives, probe.Lost, time.Second, true},
			{probe.Arrives, probe.Lost, 2 * trialTime, false},
			{probe.Arrives, probe.Lost, trialSoon, false},
		}},
		"adopted, and needed": {true, []step{
			{probe.Unknown, probe.Unknown, 2 * trialTime, true},
			{probe.Arrives, probe.Arrives, time.Second, false},
			{probe.Arrives, probe.Lost, time.Second, true},
			{probe.Arrives, probe.Arrives, time.Second, true},
			{probe.Arrives, probe.Lost, time.Hour, true},
		}},
		"adopted, and not needed": {true, []step{
			{probe.Arrives, probe.Arrives, time.Second, false},
			{probe.Arrives, probe.Arrives, 2 * trialTime, false},
		}},
		"adopted, and no help": {true, []step{
			{probe.Arrives, probe.Lost, time.Second, true},
			{probe.Arrives, probe.Lost, trialTime, false},
		}},
	} {
		now := time.Now()
		p := newProbing(slog.New(slog.DiscardHandler))
		p.ways = []overlay.Way{w}
		if c.adopted {
			have := link.NewState()
			have.Links[overlay.Device] = link.Link{SoftChecksum: true}
			p.begin(overlay.Input{}, have)
		}
		for i, s := range c.steps {
			now = now.Add(s.after)
			p.judge(results(w, s.node, probe.Unknown, s.vxlan), now)
			if p.probed.SoftChecksum != s.soft {
				t.Errorf("%s, step %d: software checksums %v, want %v (%+v)", name, i, p.probed.SoftChecksum, s.soft, p.trial)
			}
		}
	}
}
