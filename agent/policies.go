package agent

import (
	"context"
	"fmt"

	"github.com/podlane/podlane/cluster"
)

// Policies are the cluster's NetworkPolicies, of which it can only be said that
// they are not enforced.
type Policies interface {
	Run(context.Context) error
	// All gives them; known says that the API server has listed them.
	All() (all []cluster.Key, known bool)
	// Speak says whether this agent is the one that warns.
	Speak(bool)
}

// tellPolicies makes the agent of the first node, by name, the one that warns.
func (a *Agent) tellPolicies() {
	if a.config.Policies == nil || a.snapshot == nil {
		return
	}
	a.config.Policies.Speak(a.config.Events && isFirst(a.snapshot, a.config.Node))
}

// unenforced gives the policies for the status, and their number as a problem.
func (a *Agent) unenforced() []cluster.Problem {
	if a.config.Policies == nil {
		return nil
	}
	var ps []cluster.Problem
	all, _ := a.config.Policies.All()
	for i, k := range all {
		if i == 10 {
			ps = append(ps, cluster.Problem{Kind: "NetworkPolicy", Key: cluster.Key{Name: "..."}, Err: fmt.Sprintf("and %d more", len(all)-i)})
			break
		}
		ps = append(ps, cluster.Problem{Kind: "NetworkPolicy", Key: k, Err: "is not enforced: the pods that it selects accept all connections"})
	}
	return ps
}
