package agent

import (
	"context"
	"encoding/json"
	"time"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/doctor"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// VerbDoctor is the verb of a request for an Examination of this node, VerbReport
// of one for an observe.Report of it, and VerbConn for the observe.Connections that
// its conntrack knows; the Config of the last one is what they must match.
const (
	VerbDoctor = "doctor"
	VerbReport = "report"
	VerbConn   = "conn"
)

// Examination is what an agent has to say for `podlane doctor`: what is seen of
// the node, compared with the Plan in force, and what is wrong with the cluster's
// state.
type Examination struct {
	Exam    *observe.Exam    `json:"exam"`
	Cluster []doctor.Finding `json:"cluster"`
}

// scene is what the loop knows at a moment. Its parts never change, so it can be
// looked at while the loop goes on.
type scene struct {
	plan        *plan.Plan
	allocations []cni.Allocation
	fast        FastPathStatus
	noSockets   string // why no Service is translated at sockets
	sockets     *ebpf.Clients
	ways        []overlay.Way
	agent       *Agent // to be asked, and not to be read
}

func (a *Agent) scene() scene {
	allocations := a.pods.Allocations()
	return scene{a.plan, allocations, a.fast.status(allocations), a.sockets.why, a.sockets.now(a.config.Node)[a.config.Node], a.probing.ways, a}
}

func (s scene) facts() observe.Facts {
	f := observe.FromRecord(s.plan.Node, s.plan.Underlay, s.plan.Overlay, s.allocations)
	f.Probed, f.Sockets = s.plan.Probed, s.sockets
	if s.fast.On {
		f.Fast = &observe.FastPath{Pods: s.fast.Pods, Peers: s.fast.Peers}
	}
	return *f
}

// look answers from the Plan in force and from the kernel, over sockets of its own,
// while the loop goes on. A change that the loop makes meanwhile may show as a
// difference.
func (a *Agent) look(r *cni.Request, how func(scene, []byte) (any, error)) {
	if a.plan == nil {
		r.Reply(shim.Reply{Error: &shim.Error{Code: shim.CodeTryAgain, Msg: "the agent waits for the cluster's first state"}})
		return
	}
	s := a.scene()
	go func() {
		seen, err := how(s, r.Config)
		var result []byte
		if err == nil {
			result, err = json.Marshal(seen)
		}
		if err != nil {
			r.Reply(shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}})
			return
		}
		r.Reply(shim.Reply{Result: result})
	}()
}

// mostDifferences bounds those of a reply, which is bounded itself.
const mostDifferences = 500

// parts adds what the agent says of its fast path and of its translation at sockets.
func (s scene) parts(r *observe.Report) {
	r.FastPath, r.FastPathOff, r.FastPathUntold, r.SocketLBOff = s.fast.On, s.fast.Why, s.fast.Untold, s.noSockets
}

func (s scene) report(_ []byte) (any, error) {
	r, err := observe.ComparePlan(s.plan, s.facts())
	if err != nil {
		return nil, err
	}
	s.parts(r)
	r.Differences = r.Differences[:min(len(r.Differences), mostDifferences)]
	return r, nil
}

// refreshMost is up to how many ways are tried anew for an examination; those of a
// larger cluster are as they were within the last seconds.
const refreshMost = 100

// refreshTime is in what time a way is known to be lost: three questions.
const refreshTime = 1200 * time.Millisecond

// echoes tries the ways to other nodes anew.
func (a *Agent) echoes(s scene) []observe.PeerPing {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if len(s.ways) <= refreshMost {
		a.probing.prober.Refresh()
		time.Sleep(refreshTime)
	}
	var list []observe.PeerPing
	a.ask(ctx, func() { list = a.probing.echoes(s.plan) })
	return list
}

func (s scene) examination(_ []byte) (any, error) {
	exam, err := observe.ExaminePlan(s.plan, s.facts())
	if err != nil {
		return nil, err
	}
	s.parts(&exam.Report)
	exam.Differences = exam.Differences[:min(len(exam.Differences), mostDifferences)]
	exam.Echoes = s.agent.echoes(s)
	return Examination{exam, doctor.Cluster(s.plan)}, nil
}

// mostShown bounds those of a reply.
const mostShown = 5000

func (s scene) connections(match []byte) (any, error) {
	var text string
	if len(match) > 0 {
		if err := json.Unmarshal(match, &text); err != nil {
			return nil, err
		}
	}
	flows, err := observe.AllFlows()
	if err != nil {
		return nil, err
	}
	list := observe.OwnersIn(s.plan.Snapshot).Connections(s.plan.Node, flows, text)
	if list == nil {
		list = []observe.Connection{}
	}
	return list[:min(len(list), mostShown)], nil
}
