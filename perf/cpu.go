package perf

import (
	"github.com/podlane/podlane/perf/qperf"
)

// CPUCost is what one path costs in CPU time by one test: what the machines used during the
// cells, less what they used in the idle cell of the same round, for what was carried.
type CPUCost struct {
	Unit string `json:"unit"` // "s/GB", "us/message", "us/packet", "us/connection"
	// OneMachine: both ends ran on one kernel, and Client is of the whole machine. Server is nil then.
	OneMachine bool      `json:"one_machine"`
	Client     *CPUKinds `json:"client"`
	Server     *CPUKinds `json:"server,omitempty"`
}

// CPUKinds is a CPU cost by kind, as /proc/stat tells them apart.
type CPUKinds struct {
	User    float64 `json:"user"`
	System  float64 `json:"system"`
	SoftIRQ float64 `json:"softirq"`
	IRQ     float64 `json:"irq"`
	Steal   float64 `json:"steal"` // neither this nor the next was used
	IOWait  float64 `json:"iowait"`
	Total   float64 `json:"total"`
	// Engine is the part of it that the measuring threads used, and EngineCalls the part of that in
	// their system calls; Network is Total without Engine: what the path does outside of its users' own
	// calls (softirq, kernel threads, agents).
	Engine      float64 `json:"engine"`
	EngineCalls float64 `json:"engine_calls"`
	Network     float64 `json:"network"`
	// Group is what the end's whole cgroup used, on a cluster its container; 0 where that is not known of every
	// measurement, and where both ends are on one machine, as it may be the same cgroup then.
	Group float64 `json:"cgroup,omitempty"`
}

// sum adds up one end's cells and the idle time that belongs to them, in seconds.
type sum struct {
	kinds  CPUKinds
	engine qperf.CPUTime
	group  float64
	alone  bool // a cell had no cgroup of its own
}

// cpuCost is nil where no idle cells were measured, other work filled the machine, or the test
// has no amount of work.
func (e *Evaluation) cpuCost(path string, t qperf.Test) *CPUCost {
	idle := map[int]*qperf.Result{}
	for _, c := range e.Cells {
		if c.Result.Test == qperf.Rest {
			idle[c.Round] = c.Result
		}
	}
	cost, per := &CPUCost{Unit: costUnit(t), OneMachine: e.OneMachine()}, 0.0
	var client, server sum
	for _, c := range e.Cells {
		rest := idle[c.Round]
		if c.Path != path || c.Result.Test != t || rest == nil || c.Result.Engine == nil {
			continue
		}
		client.add(c.Result.Local, rest.Local, c.Result.Engine.Local)
		server.add(c.Result.Remote, rest.Remote, c.Result.Engine.Remote)
		if groups := c.Result.Groups; groups != nil {
			client.addGroup(groups.Local)
			server.addGroup(groups.Remote)
		} else {
			client.alone, server.alone = true, true
		}
		per += work(c.Result)
	}
	if cost.Unit == "" || per == 0 || usage(e).others > tooMuchLoad {
		return nil
	}
	if cost.OneMachine { // both read the same clocks
		client.alone = true
		client.engine.User += server.engine.User
		client.engine.System += server.engine.System
		cost.Client = client.cost(per)
		return cost
	}
	cost.Client, cost.Server = client.cost(per), server.cost(per)
	return cost
}

func costUnit(t qperf.Test) string {
	switch {
	case t == qperf.UDPSearch || t == qperf.Rest:
		return ""
	case t == qperf.TCPConnect:
		return "us/connection"
	case t == qperf.UDPPackets:
		return "us/packet"
	case t.Latency():
		return "us/message"
	}
	return "s/GB"
}

// work is what one cell carried, in the unit's own amount: GB, or millions of messages.
func work(r *qperf.Result) float64 {
	switch {
	case r.Test == qperf.TCPConnect:
		return float64(r.Local.Received.Messages) / 1e6
	case r.Test == qperf.UDPPackets:
		return float64(r.Remote.Received.Messages) / 1e6
	case r.Test.Latency():
		return float64(r.Local.Received.Messages+r.Remote.Received.Messages) / 1e6
	}
	return float64(r.Remote.Received.Bytes) / 1e9
}

// add takes one cell, less the part of the idle cell for as long.
func (s *sum) add(cell, rest *qperf.Stat, engine qperf.CPUTime) {
	length := func(st *qperf.Stat) float64 { return spent(st, qperf.Real) }
	if length(rest) == 0 {
		return
	}
	scale := length(cell) / length(rest)
	for _, kind := range []struct {
		to  *float64
		of  []int
		all bool
	}{
		{&s.kinds.User, []int{qperf.User, qperf.Nice}, true}, {&s.kinds.System, []int{qperf.Kernel}, true},
		{&s.kinds.SoftIRQ, []int{qperf.SoftIRQ}, true}, {&s.kinds.IRQ, []int{qperf.IRQ}, true}, {&s.kinds.Steal, []int{qperf.Steal}, false}, {&s.kinds.IOWait, []int{qperf.IOWait}, false},
	} {
		for _, index := range kind.of {
			d := spent(cell, index) - scale*spent(rest, index)
			*kind.to += d
			if kind.all { // stolen and waited time is not used, it is missing
				s.kinds.Total += d
			}
		}
	}
	s.engine.User += engine.User
	s.engine.System += engine.System
}

func (s *sum) addGroup(g *qperf.GroupTime) {
	if g == nil {
		s.alone = true
		return
	}
	s.group += g.User + g.System
}

// spent is one clock's time during the cell, in seconds.
func spent(s *qperf.Stat, index int) float64 {
	if s.TicksPerSecond == 0 {
		return 0
	}
	return float64(s.End[index]-min(s.Start[index], s.End[index])) / float64(s.TicksPerSecond)
}

func (s *sum) cost(per float64) *CPUKinds {
	k := s.kinds
	k.Engine, k.EngineCalls = s.engine.User+s.engine.System, s.engine.System
	k.Network = max(k.Total-k.Engine, 0)
	if !s.alone {
		k.Group = s.group
	}
	for _, v := range []*float64{&k.Group, &k.User, &k.System, &k.SoftIRQ, &k.IRQ, &k.Steal, &k.IOWait, &k.Total, &k.Engine, &k.EngineCalls, &k.Network} {
		*v /= per
	}
	return &k
}

// OneMachine tells whether the two ends of all paths run on one kernel.
func (e *Evaluation) OneMachine() bool {
	for _, m := range e.Machines {
		if m.Facts == nil || !m.Facts.OneMachine() {
			return false
		}
	}
	return len(e.Machines) > 0
}
