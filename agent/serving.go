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
	served  bool      // the runtime was told by an agent before this one
	last    time.Time // the runtime was told
	turn    atomic.Int64
	unready atomic.Pointer[string] // why no pods can be served; nil: they can
	// pending is why this agent has not applied all even once; nil: it has. Until then
	// it is not ready, so that a roll-out of agents that cannot work goes no further.
	pending atomic.Pointer[string]
	// leftovers of other networks, as last looked for.
	leftovers []string
	looked    time.Time
}

func newServing(c Config) *serving {
	s := &serving{runtime: c.Runtime, served: c.Runtime.Served()}
	s.runtime.Log = c.Log
	s.because("the agent waits for the cluster's first state")
	s.pending.Store(s.unready.Load())
	s.turn.Store(time.Now().UnixNano())
	return s
}

func (s *serving) because(reason string) { s.unready.Store(&reason) }

// stopped is why no pod can be served; "" where they can. A node begins when all is
// applied; afterwards, and on a node that an agent before this one has served since
// it booted, what cannot be applied (one Service, the way to one node) keeps no pod
// from starting: the status and Events tell it.
func (s *serving) stopped(pods string, links *links, err error) string {
	if pods == "" && err != nil && s.last.IsZero() && !(s.served && links.found) {
		return err.Error()
	}
	return pods
}

// tried notes what became of a turn of the loop.
func (s *serving) tried(err error) {
	switch {
	case err == nil:
		s.pending.Store(nil)
	case s.pending.Load() != nil:
		why := err.Error()
		s.pending.Store(&why)
	}
}

// settled is called after each turn of the loop.
func (a *Agent) settled(err error) {
	s := a.serving
	s.turn.Store(time.Now().UnixNano())
	if a.plan == nil {
		return
	}
	s.tried(err)
	a.lookForOthers() // first: they may be why nothing can be applied
	if why := s.stopped(a.pods.Problem(), &a.links, err); why != "" {
		s.because(why)
		return
	}
	if time.Since(s.last) >= installEvery {
		if err := s.runtime.Serve(); err != nil {
			s.because(err.Error())
			a.log.Error("container runtime", "err", err)
			return
		}
		s.last = time.Now()
	}
	s.unready.Store(nil)
}

// lookForOthers says what other networks left, when that changes.
func (a *Agent) lookForOthers() {
	s := a.serving
	if s.runtime.ConfDir == "" || time.Since(s.looked) < installEvery {
		return
	}
	s.looked = time.Now()
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
