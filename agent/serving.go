package agent

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/podlane/podlane/install"
)

const (
	installEvery = 10 * time.Second // looks whether the plugin is still there
	stuckAfter   = 2 * time.Minute  // without a turn of the loop, which has one every 30 s
)

// serving tells the container runtime and the kubelet's probes what the node can
// do. Its fields belong to the goroutine of Run, but for what is atomic.
type serving struct {
	runtime install.Runtime
	last    time.Time // the runtime was told
	turn    atomic.Int64
	unready atomic.Pointer[string] // why; nil: ready
	// leftovers of other networks, of the time when the runtime was last told.
	leftovers []string
}

func newServing(c Config) *serving {
	s := &serving{runtime: c.Runtime}
	s.runtime.Log = c.Log
	s.because("the agent waits for the cluster's first state")
	s.turn.Store(time.Now().UnixNano())
	return s
}

func (s *serving) because(reason string) { s.unready.Store(&reason) }

// settled is called after each turn of the loop. The first time the runtime is told
// only when all is applied; afterwards one Service that cannot be served keeps no
// pod from starting.
func (a *Agent) settled(err error) {
	s := a.serving
	s.turn.Store(time.Now().UnixNano())
	switch {
	case a.plan == nil:
		return
	case a.pods.Problem() != "":
		s.because(a.pods.Problem())
		return
	case err != nil && (s.last.IsZero() || a.links.applied != a.plan.Link):
		s.because(err.Error())
		return
	}
	if time.Since(s.last) >= installEvery {
		if err := s.runtime.Serve(); err != nil {
			s.because(err.Error())
			a.log.Error("container runtime", "err", err)
			return
		}
		s.last = time.Now()
		a.lookForOthers()
	}
	s.unready.Store(nil)
}

// lookForOthers says what other networks left, when that changes.
func (a *Agent) lookForOthers() {
	s := a.serving
	if s.runtime.ConfDir == "" {
		return
	}
	now := s.runtime.Leftovers()
	if !slices.Equal(now, s.leftovers) {
		for _, text := range now {
			a.log.Warn("left by another network", "what", text)
		}
	}
	s.leftovers = now
}

// FlowLimits is the file of the flow table's former limits in the state folder.
const FlowLimits = "flow-limits.json"
