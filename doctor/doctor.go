// Package doctor knows the traps that cluster networks fall into: each is a Check
// with an id, which finds it in what was observed of a node or of the cluster, and
// says how to mend it. It looks at nothing itself (explain/observe does) and
// changes nothing.
package doctor

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/plan"
)

// Severity is how bad a Finding is.
type Severity string

// The severities.
const (
	Fail Severity = "fail" // packets are lost, or will be
	Warn Severity = "warn" // it works now, and a known event breaks it
	Info Severity = "info" // worth knowing
)

// Finding is one trap that was found.
type Finding struct {
	ID       string   `json:"id"`
	Title    string   `json:"title"`
	Severity Severity `json:"severity"`
	Node     string   `json:"node,omitempty"` // where; empty: the cluster
	Evidence string   `json:"evidence"`
	Mend     string   `json:"mend"`
}

// Check is a trap that can be found. The ids stay what they are: events, metrics
// and docs/doctor.md have them too.
type Check struct {
	ID, Title string
	// Node finds it in what was seen of one node; nil where it is no trap of a node.
	Node func(*observe.Exam) []Finding
	// Cluster finds it in the cluster's state; nil where it is no trap of that.
	Cluster func(*plan.Plan) []Finding
	// All finds it by comparing nodes.
	All func([]*observe.Exam) []Finding
	// Feature finds it in what the kernel could do in a namespace of its own.
	Feature func([]observe.Feature) []Finding
}

// Checks are all checks, by id.
func Checks() []Check {
	var all []Check
	for _, group := range [][]Check{agentChecks, stateChecks, foreignChecks, hostChecks, fastPathChecks, clusterChecks, meshChecks, preflightChecks} {
		all = append(all, group...)
	}
	slices.SortFunc(all, func(a, b Check) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Nodes gives what is found on nodes and between them.
func Nodes(exams []*observe.Exam) []Finding {
	return collect(func(c Check) []Finding {
		var list []Finding
		for _, e := range exams {
			if c.Node != nil {
				list = append(list, at(c.Node(e), e.Node)...)
			}
		}
		if c.All != nil {
			list = append(list, c.All(exams)...)
		}
		return list
	})
}

// Cluster gives what is found in the cluster's state, by the Plan of any node.
func Cluster(p *plan.Plan) []Finding {
	return collect(func(c Check) []Finding {
		if c.Cluster == nil {
			return nil
		}
		return c.Cluster(p)
	})
}

// Preflight gives what a kernel lacks.
func Preflight(features []observe.Feature) []Finding {
	return collect(func(c Check) []Finding {
		if c.Feature == nil {
			return nil
		}
		return c.Feature(features)
	})
}

func collect(find func(Check) []Finding) []Finding {
	list := []Finding{}
	for _, c := range Checks() {
		for _, f := range find(c) {
			f.ID, f.Title, f.Severity = c.ID, c.Title, cmp.Or(f.Severity, Fail)
			list = append(list, f)
		}
	}
	return list
}

func at(list []Finding, node string) []Finding {
	for i := range list {
		list[i].Node = node
	}
	return list
}

// Failed says that a finding is one that loses packets.
func Failed(list []Finding) bool {
	return slices.ContainsFunc(list, func(f Finding) bool { return f.Severity == Fail })
}

func one(severity Severity, mend, format string, args ...any) []Finding {
	return []Finding{{Severity: severity, Evidence: fmt.Sprintf(format, args...), Mend: mend}}
}

// each makes a finding of every line.
func each(severity Severity, mend string, lines []string) []Finding {
	var list []Finding
	for _, l := range lines {
		list = append(list, Finding{Severity: severity, Evidence: l, Mend: mend})
	}
	return list
}

// problemsOf gives the problems of a Plan and of the objects it was made of.
func problemsOf(p *plan.Plan) []cluster.Problem {
	return append(slices.Clone(p.Problems), p.Snapshot.Problems()...)
}
