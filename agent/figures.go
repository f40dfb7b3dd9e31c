package agent

import (
	"time"

	"github.com/podlane/podlane/agent/ports"
)

// problemsEvery is how often problems are counted, for which all objects are asked.
const problemsEvery = 10 * time.Second

// count publishes the figures of a turn of the loop, for scrapes.
func (a *Agent) count(err error) {
	if a.plan == nil {
		return
	}
	f := &ports.Figures{
		Ready: err == nil && a.serving.unready.Load() == nil, Pods: len(a.pods.Allocations()), Nodes: a.snapshot.Nodes.Len(),
		Ways: map[string]int{"direct": 0, "vxlan": 0, "none": 0}, Probes: map[string]int{"arrives": 0, "lost": 0, "unknown": 0},
	}
	for _, p := range a.peers() {
		f.Ways[p.Way]++
		f.Probes[p.Probe]++
	}
	if time.Since(a.countedAt) > problemsEvery {
		a.counted, a.countedAt = len(a.allProblems()), time.Now()
	}
	f.Problems = a.counted
	a.figures.Store(f)
}
