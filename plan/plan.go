// Package plan is the whole program on one screen: the state of a node, compiled
// from the cluster's Snapshot and what is local to the node. It is pure; agent
// brings a Plan to the kernel.
package plan

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/guard"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/proxy"
)

// Input is all that a node's state depends on.
type Input struct {
	Node     string // own name
	Overlay  overlay.Config
	Proxy    proxy.Config // without Node
	Underlay link.Underlay
	Snapshot *cluster.Snapshot
	Pods     []overlay.Pod // the node's own pods, from the allocation record
	// Probed is what probes found about the ways to other nodes; nil: nothing is tried.
	Probed *overlay.Probed
	// Outside are networks outside of the cluster that have routes to pods.
	Outside []netip.Prefix
}

// Plan is the state that a node should have.
type Plan struct {
	Input
	// Base is what Link is made of beside the node's own pods, and Link the links with
	// them. They are never changed: a Plan in which they are as in the Plan before has the
	// same pointers.
	Base *overlay.Base
	Link *link.State
	// Guard is what packets the node takes for what they seem, a table for each
	// family; replaced with Base, never changed.
	Guard    []guard.Rules
	Table    *proxy.Table
	PodAddrs []netip.Addr      // of the node's own pods, sorted
	Problems []cluster.Problem // of the overlay; those of the objects are in the Snapshot
}

// CompileAll makes a Plan from nothing: the reference for Compile.
func CompileAll(in Input) *Plan {
	return Compile(&Plan{Input: Input{Snapshot: &cluster.Snapshot{}}, Table: &proxy.Table{}}, in)
}

// Compile makes the Plan for in. What depends only on what has not changed since
// prev is taken from there, so a change of one Service does not cost a walk over
// nodes and other Services.
func Compile(prev *Plan, in Input) *Plan {
	p := &Plan{Input: in, Base: prev.Base, Link: prev.Link, Guard: prev.Guard, PodAddrs: prev.PodAddrs, Problems: prev.Problems}
	in.Proxy.Node = in.Node
	p.Table = proxy.Compile(prev.Table, prev.Snapshot, in.Snapshot, in.Proxy)
	if prev.Base == nil || baseChanged(prev.Input, in) {
		p.compileBase()
		p.Guard = []guard.Rules{guard.Compile(in.OverlayInput(), in.Outside, nft.IPv4), guard.Compile(in.OverlayInput(), in.Outside, nft.IPv6)}
	}
	if p.Base != prev.Base || !samePods(prev.Pods, in.Pods) {
		p.compilePods()
	}
	return p
}

// CompileLinks is CompileAll without Guard and Table, which are what costs in a
// large cluster.
func CompileLinks(in Input) *Plan {
	p := &Plan{Input: in}
	p.compileBase()
	p.compilePods()
	return p
}

func (p *Plan) compileBase() {
	p.Base = overlay.NewBase(p.OverlayInput())
	p.Problems = p.Base.Problems
}

func (p *Plan) compilePods() {
	state := p.Base.With(p.Pods)
	p.Link, p.PodAddrs = &state, podAddrs(p.Pods)
}

// OverlayInput is the part of the input that the overlay depends on.
func (in Input) OverlayInput() overlay.Input {
	return overlay.Input{Config: in.Overlay, Node: in.Node, Nodes: in.Snapshot.Nodes, Underlay: in.Underlay, Pods: in.Pods, Probed: in.Probed}
}

func baseChanged(a, b Input) bool {
	for range b.Snapshot.Nodes.Changed(a.Snapshot.Nodes) {
		return true
	}
	return a.Node != b.Node || a.Overlay != b.Overlay || !a.Probed.Equal(b.Probed) || !sameUnderlay(a.Underlay, b.Underlay) ||
		!slices.Equal(a.Outside, b.Outside)
}

func samePods(a, b []overlay.Pod) bool {
	return slices.EqualFunc(a, b, func(a, b overlay.Pod) bool {
		return a.Link == b.Link && a.MAC == b.MAC && a.MTU == b.MTU && a.ToPod == b.ToPod && a.FromPod == b.FromPod && slices.Equal(a.Addrs, b.Addrs)
	})
}

func sameUnderlay(a, b link.Underlay) bool {
	return a.Device == b.Device && a.MTU == b.MTU && a.RARoute == b.RARoute && slices.Equal(a.Addrs, b.Addrs)
}

func podAddrs(pods []overlay.Pod) []netip.Addr {
	var addrs []netip.Addr
	for _, p := range pods {
		addrs = append(addrs, p.Addrs...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}
