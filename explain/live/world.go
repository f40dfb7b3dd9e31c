// Package live explains accesses in a running cluster: it takes the cluster's state
// from a lab's folder or the API server, and each node's own facts from its agent
// (or, for verifying, from the node itself), walks with explain, and compares with
// what the kernels have and what a real packet meets. What it wants to know of
// another machine it asks by a command that runs there (the hidden verb "observe"):
// over the lab's socket, or with the asking user's rights through the API server.
package live

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// Cluster is a running cluster with what was read of it: a lab, or a Kubernetes
// that is reached through its API server.
type Cluster struct {
	Name     string
	Snapshot *cluster.Snapshot
	Facts    map[string]*observe.Facts
	Plans    map[string]*plan.Plan
	// Outside are the addresses of "outside", one for a family.
	Outside []netip.Addr
	site    site
	// failed is, by node, why its facts could not be had.
	failed map[string]error
}

// site is where the nodes and pods of a cluster are reached.
type site interface {
	nodes() []string
	// run runs "podlane observe" with these arguments at a target, "node/N", "NS/POD"
	// or "outside", and gives what it prints. A command that goes on until it is told
	// to end is told so when stop is closed.
	run(ctx context.Context, target string, stop <-chan struct{}, args ...string) ([]byte, error)
	// about gives the arguments that tell "observe node" and "observe exam" of a node.
	about(node string) []string
	// facts asks a node's agent for what its Plan depends on.
	facts(ctx context.Context, node string) (*observe.Facts, error)
	// traceArgs are those by which a trace notices its stop.
	traceArgs() []string
	// port gives a source port for a probe.
	port(ctx context.Context, target string) (uint16, error)
	// patience is how long it may take until a probe that was asked for is sent.
	patience() time.Duration
}

func newCluster(name string, s *cluster.Snapshot, at site) *Cluster {
	return &Cluster{Name: name, Snapshot: s, Facts: map[string]*observe.Facts{}, Plans: map[string]*plan.Plan{}, failed: map[string]error{}, site: at}
}

// NodeNames gives the cluster's nodes.
func (c *Cluster) NodeNames() []string { return c.site.nodes() }

// AgentError says that a node's agent does not answer.
type AgentError struct {
	Node string
	Err  error
}

func (e *AgentError) Error() string {
	return fmt.Sprintf("the agent of node %s does not answer: %v", e.Node, e.Err)
}

func (e *AgentError) Unwrap() error { return e.Err }

// Explain walks an access. It asks the agents of the nodes that the access comes
// to, and an agent that does not answer is an error.
func (c *Cluster) Explain(ctx context.Context, a explain.Access) (*explain.Answer, error) {
	w := c.world(func(node string) {
		if c.Facts[node] != nil || c.failed[node] != nil {
			return
		}
		f, err := c.site.facts(ctx, node)
		if err != nil {
			c.failed[node] = &AgentError{node, err}
			return
		}
		c.Facts[node] = f
	})
	return c.walk(w, a)
}

// walk explains, and prefers the error of a node that could not be asked.
func (c *Cluster) walk(w explain.World, a explain.Access) (*explain.Answer, error) {
	answer, err := explain.Explain(w, a)
	for _, node := range slices.Sorted(maps.Keys(c.failed)) {
		if _, met := c.Plans[node]; met && c.failed[node] != nil {
			return nil, c.failed[node]
		}
	}
	return answer, err
}

// world gives what explain walks through. Plans are compiled when the walk comes
// to them; need is told before.
func (c *Cluster) world(need func(node string)) explain.World {
	names, fast := map[string]map[string]cluster.Key{}, map[string]*fastpath.State{}
	sockets := map[string]*ebpf.Clients{}
	known := func(node string) {
		if f := c.Facts[node]; f != nil {
			names[node], fast[node], sockets[node] = f.Names(), f.Fast.State(), f.Sockets
		}
	}
	for node := range c.Facts {
		known(node)
	}
	return explain.World{
		Snapshot: c.Snapshot, Names: names, Outside: c.Outside, Fast: fast, Sockets: sockets,
		Compile: func(node string) *plan.Plan {
			need(node)
			known(node)
			return c.compile(node)
		},
	}
}

// compile gives a node's Plan, nil where its facts are not known.
func (c *Cluster) compile(node string) *plan.Plan {
	if p, done := c.Plans[node]; done && p != nil {
		return p
	}
	c.Plans[node] = nil
	if f := c.Facts[node]; f != nil {
		c.Plans[node] = f.Links(c.Snapshot)
	}
	return c.Plans[node]
}
