// Package live explains accesses in a running lab: it takes the cluster's state
// from the lab's folder and each node's own facts from its agent (or, for
// verifying, from the node itself), walks with explain, and compares with what
// the kernels have and what a real packet meets. It is for labs: on a node of a
// real cluster the agent answers for itself.
package live

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// Cluster is a running lab with what was read of it.
type Cluster struct {
	Lab      *lab.Client
	Name     string
	Status   *lab.Status
	Snapshot *cluster.Snapshot
	Facts    map[string]*observe.Facts
	Plans    map[string]*plan.Plan
}

// clusterName is that of every lab: the agents' default.
const clusterName = "podlane"

// Read reads a lab's cluster state. The nodes' facts are read when they are
// needed (see Ask and Report).
func Read(ctx context.Context, name string) (*Cluster, error) {
	client, err := lab.Dial(name)
	if err != nil {
		return nil, err
	}
	st, err := client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	objects, _, err := file.Read(filepath.Join(client.Dir(), "cluster"))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	return &Cluster{
		Lab: client, Name: name, Status: st, Snapshot: objects.Snapshot(""), Facts: map[string]*observe.Facts{}, Plans: map[string]*plan.Plan{},
	}, nil
}

func (c *Cluster) overlay() overlay.Config {
	return overlay.Config{Mode: overlay.Mode(c.Status.Overlay), Cluster: clusterName}
}

// NodeNames gives the lab's nodes.
func (c *Cluster) NodeNames() []string {
	var names []string
	for _, n := range c.Status.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// AgentError says that a node's agent does not answer.
type AgentError struct {
	Node string
	Err  error
}

func (e *AgentError) Error() string {
	return fmt.Sprintf("the agent of node %s does not answer: %v", e.Node, e.Err)
}

func (e *AgentError) Unwrap() error { return e.Err }

// Ask reads the facts of all nodes from their agents.
func (c *Cluster) Ask() error {
	nodes := c.NodeNames()
	errs := make([]error, len(nodes))
	facts := make([]*observe.Facts, len(nodes))
	var wait sync.WaitGroup
	for i, n := range nodes {
		wait.Go(func() { facts[i], errs[i] = c.askAgent(n) })
	}
	wait.Wait()
	for i, n := range nodes {
		if errs[i] != nil {
			return &AgentError{n, errs[i]}
		}
		c.Facts[n] = facts[i]
	}
	return nil
}

func (c *Cluster) askAgent(node string) (*observe.Facts, error) {
	socket := filepath.Join(c.Lab.Dir(), "nodes", node, "run", "agent.sock")
	reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbStatus}, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	s := &agent.Status{}
	if err := json.Unmarshal(reply.Result, s); err != nil {
		return nil, err
	}
	if !s.Synced {
		return nil, fmt.Errorf("it waits for the cluster's first state")
	}
	return fromStatus(s, c.overlay()), nil
}

// fromStatus takes the facts that an agent tells of itself.
func fromStatus(s *agent.Status, o overlay.Config) *observe.Facts {
	f := &observe.Facts{Node: s.Node, Underlay: s.Underlay, Overlay: o, Pods: []observe.PodLink{}, Fast: s.FastPath.State(), Sockets: s.SocketLB.Clients(), Probed: s.Probed}
	for _, p := range s.Pods {
		f.Pods = append(f.Pods, observe.PodLink{Pod: p.Pod, Link: p.Dev, MAC: p.MAC, MTU: p.MTU, Addrs: p.Addrs})
	}
	return f
}

// World gives what explain walks through. Plans are compiled when the walk comes
// to them.
func (c *Cluster) World() explain.World {
	names, fast, sockets := map[string]map[string]cluster.Key{}, map[string]*fastpath.State{}, map[string]*ebpf.Clients{}
	for node, f := range c.Facts {
		names[node], fast[node], sockets[node] = f.Names(), f.Fast, f.Sockets
	}
	return explain.World{
		Snapshot: c.Snapshot, Plans: c.Plans, Names: names, Outside: c.outside(),
		Compile: c.compile, Fast: fast, Sockets: sockets,
	}
}

func (c *Cluster) compile(node string) *plan.Plan {
	f := c.Facts[node]
	if f == nil {
		return nil
	}
	if c.Plans[node] == nil {
		c.Plans[node] = f.Plan(c.Snapshot)
	}
	return c.Plans[node]
}

// outside are the addresses of the lab's outside, a host beside the nodes: in
// each segment of the nodes' it has the one that ends in 254 (fe).
func (c *Cluster) outside() []netip.Addr {
	var list []netip.Addr
	for _, k := range c.Snapshot.Nodes.Keys() {
		for _, a := range c.Snapshot.Nodes.Get(k).Addresses {
			if o := lab.Outside(a); !slices.Contains(list, o) {
				list = append(list, o)
			}
		}
	}
	return list
}
