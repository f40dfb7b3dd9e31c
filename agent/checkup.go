package agent

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/doctor"
	"github.com/podlane/podlane/explain/observe"
)

// The agent looks for the cheap ones of doctor's traps now and then, soon after the
// start for the first time.
const (
	firstCheckup = 10 * time.Second
	checkupEvery = 5 * time.Minute
	warnAgain    = time.Hour // the API server forgets an Event after that
)

// Warner writes Events on this node.
type Warner interface {
	Warn(ctx context.Context, reason, message string) error
}

// checkups keeps what was found last. Its own goroutine looks, beside the loop.
type checkups struct {
	found  atomic.Pointer[[]doctor.Finding]
	warned map[string]time.Time // by id
}

// run looks until ctx ends. A look that fails is logged, and stops nothing.
func (a *Agent) checkups(ctx context.Context) error {
	c := &checkups{warned: map[string]time.Time{}}
	a.operations.ports.Metrics.Findings(c.counts)
	for wait := firstCheckup; ; wait = checkupEvery {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		var s scene
		if !a.ask(ctx, func() { s = a.scene() }) || s.plan == nil {
			continue
		}
		if err := c.look(s); err != nil {
			a.log.Warn("checkup", "err", err)
			continue
		}
		if a.config.Warner != nil {
			c.warn(ctx, a, s)
		}
	}
}

func (c *checkups) look(s scene) error {
	exam, err := observe.Glance(s.plan, s.facts())
	if err != nil {
		return err
	}
	s.parts(&exam.Report)
	found := append(doctor.Cluster(s.plan), doctor.Nodes([]*observe.Exam{exam})...)
	c.found.Store(&found)
	return nil
}

// counts gives the number of findings of each id and severity; nothing before the
// first look.
func (c *checkups) counts() map[[2]string]int {
	found := c.found.Load()
	if found == nil {
		return nil
	}
	n := map[[2]string]int{}
	for _, f := range *found {
		n[[2]string{f.ID, string(f.Severity)}]++
	}
	return n
}

// warn writes an Event for each id that was found, but for what is merely worth
// knowing. What is wrong with the cluster, not with a node, the first node says.
func (c *checkups) warn(ctx context.Context, a *Agent, s scene) {
	more := map[string]int{}
	for _, f := range *c.found.Load() {
		more[f.ID]++
	}
	for _, f := range *c.found.Load() {
		if f.Severity == doctor.Info || time.Since(c.warned[f.ID]) < warnAgain || f.Node == "" && !isFirst(s.plan.Snapshot, s.plan.Node) {
			continue
		}
		text := fmt.Sprintf("%s: %s; mend: %s", f.Title, f.Evidence, f.Mend)
		if n := more[f.ID] - 1; n > 0 {
			text += fmt.Sprintf(" (and %d more)", n)
		}
		if err := a.config.Warner.Warn(ctx, f.ID, text); err != nil {
			a.log.Warn("Event on the node", "id", f.ID, "err", err)
			continue
		}
		c.warned[f.ID] = time.Now()
	}
}

// isFirst says that a node is the first one by name.
func isFirst(s *cluster.Snapshot, node string) bool {
	for k := range s.Nodes.All() {
		if k.Name < node {
			return false
		}
	}
	return true
}

// ask runs a function in the loop, which owns the agent's fields, and says whether
// it ran: it does not where ctx ends first.
func (a *Agent) ask(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	select {
	case a.questions <- func() { f(); close(done) }:
	case <-ctx.Done():
		return false
	}
	<-done
	return true
}
