package agent

import (
	"encoding/json"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/doctor"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/plan"
)

// VerbDoctor is the verb of a request for an Examination of this node.
const VerbDoctor = "doctor"

// Examination is what an agent has to say for `podlane doctor`: what is seen of
// the node, compared with the Plan in force, and what is wrong with the cluster's
// state.
type Examination struct {
	Exam    *observe.Exam    `json:"exam"`
	Cluster []doctor.Finding `json:"cluster"`
}

// examine answers from the Plan in force and from the kernel, over sockets of its
// own, while the loop goes on. A change that the loop makes meanwhile may show as
// a difference.
func (a *Agent) examine(r *cni.Request) {
	if a.plan == nil {
		r.Reply(shim.Reply{Error: &shim.Error{Code: shim.CodeTryAgain, Msg: "the agent waits for the cluster's first state"}})
		return
	}
	facts := observe.FromRecord(a.config.Node, a.plan.Underlay, a.plan.Overlay, a.pods.Allocations())
	facts.Probed = a.plan.Probed
	fast, why := a.fast.status(nil), a.sockets.why
	go func(p *plan.Plan) { r.Reply(examination(p, *facts, fast, why)) }(a.plan)
}

func examination(p *plan.Plan, facts observe.Facts, fast FastPathStatus, noSockets string) shim.Reply {
	exam, err := observe.ExaminePlan(p, facts)
	var result []byte
	if err == nil {
		exam.FastPath, exam.FastPathOff, exam.SocketLBOff = fast.On, fast.Why, noSockets
		result, err = json.Marshal(Examination{exam, doctor.Cluster(p)})
	}
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}}
	}
	return shim.Reply{Result: result}
}
