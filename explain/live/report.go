package live

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/plan"
)

// Report looks at the nodes' kernels from within, and takes their facts from
// there. The error is that of the first node that could not be looked at.
func (c *Cluster) Report(ctx context.Context, nodes ...string) (map[string]*observe.Report, error) {
	found, errs := onNodes[observe.Report](ctx, c, "node", nodes)
	reports := map[string]*observe.Report{}
	var first error
	for i, n := range nodes {
		if c.failed[n] = errs[i]; errs[i] != nil {
			first = cmp.Or(first, errs[i])
			continue
		}
		reports[n] = found[i]
		c.learn(n, &found[i].Facts)
	}
	return reports, first
}

// Exam examines the nodes from within, and tries the ways between them. A node that
// cannot be looked at is one whose agent does not answer; where none can, that is
// the error.
func (c *Cluster) Exam(ctx context.Context, nodes ...string) ([]*observe.Exam, error) {
	found, errs := onNodes[observe.Exam](ctx, c, "exam", nodes)
	failed := 0
	for i, n := range nodes {
		if errs[i] == nil {
			c.learn(n, &found[i].Facts)
			continue
		}
		failed++
		found[i] = &observe.Exam{Report: observe.Report{Facts: observe.Facts{Node: n}, Agent: "does not answer: " + errs[i].Error()}}
	}
	if failed > 0 && failed == len(nodes) {
		return nil, errs[0]
	}
	return found, nil
}

// onNodes runs one verb on several nodes at a time.
func onNodes[T any](ctx context.Context, c *Cluster, verb string, nodes []string) ([]*T, []error) {
	errs, found := make([]error, len(nodes)), make([]*T, len(nodes))
	slots := make(chan struct{}, 16)
	var wait sync.WaitGroup
	for i, n := range nodes {
		wait.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			found[i] = new(T)
			errs[i] = c.observe(ctx, "node/"+n, found[i], append([]string{verb}, c.site.about(n)...)...)
		})
	}
	wait.Wait()
	return found, errs
}

func (c *Cluster) learn(node string, f *observe.Facts) {
	c.Facts[node] = f
	delete(c.Plans, node)
	delete(c.failed, node)
}

// AnyPlan gives the Plan of a node whose facts are known, nil where there is none.
func (c *Cluster) AnyPlan() *plan.Plan {
	for _, n := range c.NodeNames() {
		if c.Facts[n] != nil {
			return c.Facts[n].Plan(c.Snapshot)
		}
	}
	return nil
}

// observe runs the hidden verb at a target and reads its JSON.
func (c *Cluster) observe(ctx context.Context, target string, into any, args ...string) error {
	return c.observeUntil(ctx, target, into, nil, args...)
}

// observeUntil is observe for a command that prints its JSON when it is told to
// end, which it is when stop is closed.
func (c *Cluster) observeUntil(ctx context.Context, target string, into any, stop <-chan struct{}, args ...string) error {
	out, err := c.site.run(ctx, target, stop, args...)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Replace(target, "node/", "node ", 1), err)
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("%s: observe %s: %w", target, args[0], err)
	}
	return nil
}

// decide asks a node's kernel where it would send packets.
func (c *Cluster) decide(ctx context.Context, node string, dsts []netip.Addr) ([]observe.Decision, error) {
	args := []string{"route"}
	for _, d := range dsts {
		args = append(args, d.String())
	}
	var list []observe.Decision
	return list, c.observe(ctx, "node/"+node, &list, args...)
}
