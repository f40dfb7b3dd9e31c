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
	fast := a.fast.status(nil)
	go func(p *plan.Plan) { r.Reply(examination(p, *facts, fast)) }(a.plan)
}

func examination(p *plan.Plan, facts observe.Facts, fast FastPathStatus) shim.Reply {
	exam, err := observe.ExaminePlan(p, facts)
	var result []byte
	if err == nil {
		exam.FastPath, exam.FastPathOff = fast.On, fast.Why
		result, err = json.Marshal(Examination{exam, doctor.Cluster(p)})
	}
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}}
	}
	return shim.Reply{Result: result}
}
