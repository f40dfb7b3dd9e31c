package observe

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// Node says which node to look at, from a process in its network namespace.
type Node struct {
	Name     string
	Snapshot *cluster.Snapshot
	Overlay  overlay.Config
	RunDir   string
	StateDir string
}

// Report is what a node really has, without asking its agent.
type Report struct {
	Facts
	Agent string `json:"agent"` // what is wrong with the agent, or empty
	// FastPath says that packets between pods pass the node's packet filter by, so
	// that neither conntrack nor nftrace sees them there.
	FastPath bool `json:"fast_path"`
	// FastPathOff is why it is off; "" where it is on, or that is not known.
	FastPathOff string `json:"fast_path_off,omitempty"`
	// FastPathUntold is why conntrack is not told of pods' own connections; "" where it
	// is, or there is no fast path.
	FastPathUntold string `json:"fast_path_untold,omitempty"`
	// SocketLBOff likewise says why no Service is translated at sockets.
	SocketLBOff string       `json:"socket_lb_off,omitempty"`
	Differences []Difference `json:"differences"`
	Foreign     []Foreign    `json:"foreign"`
	Problems    []string     `json:"problems,omitempty"` // what could not be looked at
}

// Look makes the Report of a node. Its error says that there is nothing to say:
// no rights, or no such node.
func Look(n Node) (*Report, *plan.Plan, error) {
	own := n.Snapshot.Nodes.Get(cluster.Key{Name: n.Name})
	if own == nil || len(own.Addresses) == 0 {
		return nil, nil, fmt.Errorf("node %s: no such node in the cluster's state, or it has no address", n.Name)
	}
	handle, err := link.Open("")
	if err != nil {
		return nil, nil, err
	}
	defer handle.Close()
	underlay, err := handle.ReadUnderlay(own.Addresses[0])
	if err != nil {
		return nil, nil, err
	}
	record, recordErr := cni.ReadRecord(filepath.Join(n.StateDir, "allocations", "v1"))
	facts := FromRecord(n.Name, underlay, n.Overlay, record)
	have, err := handle.Read()
	if err != nil {
		return nil, nil, err
	}
	facts.Probed = overlay.TrustKernel(facts.Links(n.Snapshot).OverlayInput(), have)
	p := facts.Plan(n.Snapshot)
	r, err := ComparePlan(p, *facts)
	if err != nil {
		return nil, nil, err
	}
	r.note(recordErr)
	r.askAgent(filepath.Join(n.RunDir, "agent.sock"))
	return r, p, nil
}

// ComparePlan makes the Report of the node that a Plan is for, which the calling
// thread is on.
func ComparePlan(p *plan.Plan, facts Facts) (*Report, error) {
	r := &Report{Facts: facts}
	var err error
	if r.Differences, err = Compare(p); err != nil {
		return nil, fmt.Errorf("node %s: %w", p.Node, err)
	}
	r.Foreign, err = ForeignDrops()
	r.note(err)
	return r, nil
}

func (r *Report) note(err error) {
	if err != nil {
		r.Problems = append(r.Problems, err.Error())
	}
}

// verbStatus is agent.VerbStatus; the agent uses this package.
const verbStatus = "status"

// askAgent notes what is wrong with the agent of a socket, and its fast path.
func (r *Report) askAgent(socket string) {
	reply, err := shim.Ask(socket, shim.Request{Verb: verbStatus}, 3*time.Second)
	switch {
	case err != nil:
		r.Agent = "does not answer: " + err.Error()
		return
	case reply.Error != nil:
		r.Agent = reply.Error.Error()
		return
	}
	var status struct {
		FastPath struct {
			On     bool   `json:"on"`
			Why    string `json:"why"`
			Untold string `json:"untold"`
			FastPath
		} `json:"fastPath"`
		SocketLB struct {
			Why    string       `json:"why"`
			Cgroup string       `json:"cgroup"`
			Pods   []netip.Addr `json:"pods"`
			Own    []netip.Addr `json:"own"`
		} `json:"socketLB"`
	}
	r.note(json.Unmarshal(reply.Result, &status))
	r.FastPath, r.FastPathOff, r.FastPathUntold, r.SocketLBOff = status.FastPath.On, status.FastPath.Why, status.FastPath.Untold, status.SocketLB.Why
	if status.SocketLB.Cgroup != "" {
		r.Sockets = ebpf.NewClients(status.SocketLB.Pods, status.SocketLB.Own)
	}
	if r.FastPath {
		r.Fast = &status.FastPath.FastPath
	}
}

// Decision is what the kernel's routing, with all rules and tables of whoever,
// says about an address.
type Decision struct {
	Dst     netip.Addr `json:"dst"`
	Via     netip.Addr `json:"via,omitzero"`
	Dev     string     `json:"dev"`
	Local   bool       `json:"local,omitempty"`
	Problem string     `json:"problem,omitempty"`
}

// Decide asks the kernel where a packet to an address would go.
func Decide(dst netip.Addr) Decision {
	d := Decision{Dst: dst}
	routes, err := netlink.RouteGet(dst.AsSlice())
	if err != nil || len(routes) == 0 {
		d.Problem = fmt.Sprint(errors.Join(err, errors.New("no route")))
		if err != nil {
			d.Problem = err.Error()
		}
		return d
	}
	r := routes[0]
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		d.Via = a.Unmap()
	}
	const rtnLocal = 2
	d.Local = r.Type == rtnLocal
	if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
		d.Dev = l.Attrs().Name
	}
	return d
}
