package doctor

import (
	"fmt"
	"strings"

	"github.com/podlane/podlane/explain/observe"
)

var fastPathChecks = []Check{
	{ID: "PL-031", Title: "another packet filter does not see packets on the fast path", Node: unseen},
	{ID: "PL-032", Title: "the fast path is off", Node: func(e *observe.Exam) []Finding {
		if e.FastPathOff == "" || strings.HasPrefix(e.FastPathOff, "off by ") {
			return nil
		}
		return one(Info, "nothing has to be done: the normal path is complete; docs/fast-path.md says what the fast path needs", "%s", e.FastPathOff)
	}},
	{ID: "PL-033", Title: "no Service is translated at the pods' sockets", Node: func(e *observe.Exam) []Finding {
		if e.SocketLBOff == "" || strings.HasPrefix(e.SocketLBOff, "off by ") {
			return nil
		}
		return one(Info, "nothing has to be done: the node's rules translate; docs/fast-path.md says what the translation at the socket needs", "%s", e.SocketLBOff)
	}},
	{ID: "PL-034", Title: "conntrack is not told of pods' own connections", Node: func(e *observe.Exam) []Finding {
		if e.FastPathUntold == "" {
			return nil
		}
		return one(Info, "Linux 6.0 can; until then a pod that uses one source port for a Service and for a pod behind it loses both connections (docs/fast-path.md)", "%s", e.FastPathUntold)
	}},
}

// unseen finds rules of others that drop in the forward hook, where packets of the
// fast path do not come by.
func unseen(e *observe.Exam) []Finding {
	if !e.FastPath {
		return nil
	}
	var list []Finding
	for _, f := range e.Foreign {
		if f.Meets("forward") && f.Handle != 0 {
			list = append(list, Finding{Severity: Warn, Evidence: f.String(), Mend: fmt.Sprintf(
				"if the rule is meant for packets between pods: podlane agent --fast-path off, or the annotation podlane.dev/fast-path: \"off\" on the pods that it is for (nft list chain %s %s)", f.Table, f.Chain)})
		}
	}
	return list
}
