package agent

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// VerbStatus is the verb of a request for the agent's Status.
const VerbStatus = "status"

// Status is what the agent says of itself.
type Status struct {
	Node string `json:"node"`
	// Server is the API server's address and how it was found; empty with a folder.
	Server string `json:"server,omitempty"`
	// Unready is why the node cannot serve pods; "" where it can.
	Unready  string        `json:"unready,omitempty"`
	Synced   bool          `json:"synced"`
	Up       time.Duration `json:"upNanoseconds"`
	Nodes    int           `json:"nodes"`
	Services int           `json:"services"`
	Pods     []PodStatus   `json:"pods"`
	Problems []string      `json:"problems"`
	// Peers are the other nodes, by name, each with the way that its pods' packets take.
	Peers []PeerStatus `json:"peers"`
	// Dropped is how many packets were not what they seemed, by reason.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
	// Probed is what the ways follow from.
	Probed *overlay.Probed `json:"probed,omitempty"`
	// Underlay is the link that joins the node to the others, as the last Plan has
	// it.
	Underlay link.Underlay  `json:"underlay"`
	Overlay  overlay.Config `json:"overlay"`
	FastPath FastPathStatus `json:"fastPath"`
	DNS      *DNSStatus     `json:"dns,omitempty"`
	SocketLB SocketLBStatus `json:"socketLB"`
	// Applied is the version of the cluster's state that the kernel has, where the
	// source gives one.
	Applied string `json:"applied,omitempty"`
	// Error is the last error of the loop, empty when all is applied.
	Error    string `json:"error,omitempty"`
	Failures int    `json:"failures,omitempty"`
	// Past is the last error that is over, nil where there was none.
	Past *PastError `json:"past,omitempty"`
	// Owned is what is ours on this node.
	Owned *Owned `json:"owned,omitempty"`
}

// PastError is an error of the loop that is over.
type PastError struct {
	Error string    `json:"error"`
	Until time.Time `json:"until"`
}

// Owned counts what is ours on the node: of links and what is on them what the last Plan has, of nftables' tables what there is.
type Owned struct {
	Links      int      `json:"links"`
	Addresses  int      `json:"addresses"`
	Routes     int      `json:"routes"`
	Neighbours int      `json:"neighbours"`
	FDB        int      `json:"fdb"`
	Sysctls    int      `json:"sysctls"`
	Tables     []string `json:"tables"`
}

func (a *Agent) owned() *Owned {
	s := a.plan.Link
	o := &Owned{Links: len(s.Links), Addresses: len(s.Addrs), Routes: len(s.Routes), Neighbours: len(s.Neighs), FDB: len(s.FDB), Sysctls: len(s.Sysctls)}
	tables, err := a.services.conn.Tables()
	if err != nil {
		a.log.Warn("status", "err", err)
	}
	for _, t := range tables {
		o.Tables = append(o.Tables, t.String())
	}
	return o
}

// PodStatus is one of the node's own pods.
type PodStatus struct {
	Pod   string       `json:"pod"`
	Addrs []netip.Addr `json:"addrs"`
	Dev   string       `json:"dev"`
	MAC   string       `json:"mac"` // of the pod's end
	MTU   int          `json:"mtu"`
}

func (a *Agent) status() shim.Reply {
	s := Status{Node: a.config.Node, Synced: a.snapshot != nil, Up: time.Since(a.started), Problems: []string{}, Pods: []PodStatus{}, Overlay: a.config.Overlay}
	if a.config.Servers != nil {
		s.Server = a.config.Servers.InUse()
	}
	if why := a.serving.unready.Load(); why != nil {
		s.Unready = *why
	}
	for _, al := range a.pods.Allocations() {
		s.Pods = append(s.Pods, PodStatus{Pod: al.PodName(), Addrs: al.Addrs, Dev: al.Link, MAC: al.MAC.String(), MTU: al.MTU})
	}
	s.FastPath = a.fast.status(a.pods.Allocations())
	if a.plan != nil {
		s.SocketLB = a.sockets.status(a.snapshot, a.pods.Allocations())
		s.Underlay, s.Owned = a.plan.Underlay, a.owned()
		if a.dns.service != (cluster.Key{}) {
			dns := a.dns.status(a.snapshot, a.config.Node)
			s.DNS = &dns
		}
		s.Dropped, _ = a.guarding.counts(a.services.conn) // where there is no table, nothing is dropped
		s.Probed = a.plan.Probed
		s.Peers = a.peers()
		s.Nodes, s.Services = a.snapshot.Nodes.Len(), a.plan.Table.Services.Len()
		for _, p := range a.allProblems() {
			s.Problems = append(s.Problems, p.String())
		}
	}
	s.Applied, s.Past = a.applied, a.past
	if a.lastErr != nil {
		s.Error, s.Failures = a.lastErr.Error(), a.failures
	}
	result, err := json.Marshal(s)
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}}
	}
	return shim.Reply{Result: result}
}

// allProblems gives those of the overlay, of the proxy and of every object.
func (a *Agent) allProblems() []cluster.Problem {
	ps := append([]cluster.Problem{}, a.plan.Problems...)
	ps = append(ps, a.services.problems()...)
	ps = append(ps, a.unenforced()...)
	ps = append(ps, a.probing.problems()...)
	for _, text := range a.telling.foreign {
		ps = append(ps, cluster.Problem{Kind: "node", Key: cluster.Key{Name: a.config.Node}, Err: text})
	}
	for _, text := range a.serving.leftovers {
		ps = append(ps, cluster.Problem{Kind: "node", Key: cluster.Key{Name: a.config.Node}, Err: "left by another network: " + text})
	}
	ps = append(ps, a.operations.problems()...)
	return append(ps, a.snapshot.Problems()...)
}
