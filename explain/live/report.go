package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/plan"
)

// Report looks at the nodes' kernels from within, and takes their facts from
// there: no agent is asked.
func (c *Cluster) Report(ctx context.Context, nodes ...string) (map[string]*observe.Report, error) {
	reports := map[string]*observe.Report{}
	errs := make([]error, len(nodes))
	found := make([]*observe.Report, len(nodes))
	var wait sync.WaitGroup
	for i, n := range nodes {
		wait.Go(func() {
			found[i] = &observe.Report{}
			errs[i] = c.observe(ctx, "node/"+n, found[i], append([]string{"node"}, c.nodeFlags(n)...)...)
		})
	}
	wait.Wait()
	for i, n := range nodes {
		if errs[i] != nil {
			return nil, errs[i]
		}
		reports[n] = found[i]
		c.Facts[n] = &found[i].Facts
		delete(c.Plans, n)
	}
	return reports, nil
}

// Exam examines the nodes from within, and tries the ways between them.
func (c *Cluster) Exam(ctx context.Context, nodes ...string) ([]*observe.Exam, error) {
	errs := make([]error, len(nodes))
	found := make([]*observe.Exam, len(nodes))
	var wait sync.WaitGroup
	for i, n := range nodes {
		wait.Go(func() {
			found[i] = &observe.Exam{}
			errs[i] = c.observe(ctx, "node/"+n, found[i], append([]string{"exam"}, c.nodeFlags(n)...)...)
		})
	}
	wait.Wait()
	for i, n := range nodes {
		if errs[i] != nil {
			return nil, errs[i]
		}
		c.Facts[n] = &found[i].Facts
		delete(c.Plans, n)
	}
	return found, nil
}

// Plan compiles a node's Plan from its facts, which have been read.
func (c *Cluster) Plan(node string) *plan.Plan { return c.compile(node) }

// nodeFlags tell the hidden verb "observe" about a node of the lab.
func (c *Cluster) nodeFlags(node string) []string {
	dir := filepath.Join(c.Lab.Dir(), "nodes", node)
	return []string{"--node", node, "--manifests", filepath.Join(c.Lab.Dir(), "cluster"), "--overlay", c.Status.Overlay,
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state")}
}

// observe runs the hidden verb at a target in the lab and reads its JSON.
func (c *Cluster) observe(ctx context.Context, target string, into any, args ...string) error {
	self, err := program()
	if err != nil {
		return err
	}
	out, err := c.Lab.Output(ctx, target, append([]string{self, "observe"}, args...)...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: observe %s: %w", target, args[0], err)
	}
	return nil
}

// Program is the podlane to run inside a lab; empty is the running program, which
// is right but for tests.
var Program string

func program() (string, error) {
	if Program != "" {
		return Program, nil
	}
	return os.Executable()
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

// observeUntil is observe for a command that prints its JSON when it is
// interrupted, which it is when done is closed.
func (c *Cluster) observeUntil(ctx context.Context, target string, into any, done <-chan struct{}, args ...string) error {
	self, err := program()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-done:
			cancel()
		case <-ctx.Done():
		}
	}()
	out, err := c.Lab.Output(ctx, target, append([]string{self, "observe"}, args...)...)
	if out == "" && err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("%s: observe %s: %w", target, args[0], err)
	}
	return nil
}
