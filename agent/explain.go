package agent

import (
	"encoding/json"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// VerbExplain is the verb of a request for an explain.Answer; its Config is an
// explain.Access.
const VerbExplain = "explain"

// CodeNotFound is the code of an answer to VerbExplain about something that does
// not exist.
const CodeNotFound = 101

// wholePaths bounds the paths that go into a reply with all their hops, since a
// reply is bounded.
const wholePaths = 32

// explain answers from the Plan in force. Plans and Snapshots never change, so the
// loop goes on meanwhile.
func (a *Agent) explain(r *cni.Request) {
	if a.plan == nil {
		r.Reply(shim.Reply{Error: &shim.Error{Code: shim.CodeTryAgain, Msg: "the agent waits for the cluster's first state"}})
		return
	}
	w := a.world()
	go func() { r.Reply(explainReply(w, r.Config)) }()
}

func explainReply(w explain.World, question []byte) shim.Reply {
	var access explain.Access
	if err := json.Unmarshal(question, &access); err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeDecode, Msg: err.Error()}}
	}
	answer, err := explain.Explain(w, access)
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: CodeNotFound, Msg: err.Error()}}
	}
	for i, p := range answer.Paths {
		if i >= wholePaths {
			p.Forward, p.Back = []explain.Hop{}, []explain.Hop{}
		}
	}
	result, err := json.Marshal(answer)
	if err != nil {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}}
	}
	return shim.Reply{Result: result}
}

// world is what this node knows: its own Plan, and of the others what follows
// from the cluster's state.
func (a *Agent) world() explain.World {
	names := map[string]cluster.Key{}
	for _, al := range a.pods.Allocations() {
		names[al.Link] = cluster.Key{Namespace: al.Namespace, Name: al.Pod}
	}
	own := a.plan
	return explain.World{
		Snapshot: own.Snapshot, Plans: map[string]*plan.Plan{own.Node: own}, Names: map[string]map[string]cluster.Key{own.Node: names},
		Compile: peersOf(own).plan, Fast: a.fast.now(own.Node), Sockets: a.sockets.now(own.Node),
	}
}

// peers makes Plans of other nodes.
type peers struct {
	own   *plan.Plan
	addrs map[string][]netip.Addr // nil: not looked for yet
}

func peersOf(own *plan.Plan) *peers { return &peers{own: own} }

// plan gives the Plan that another node should have, as far as it can be told
// from here: its underlay is taken to be like the own, and the links of its pods
// have made-up names.
func (p *peers) plan(node string) *plan.Plan {
	own := p.own
	n := own.Snapshot.Nodes.Get(cluster.Key{Name: node})
	if n == nil {
		return nil
	}
	in := plan.Input{
		Node: node, Overlay: own.Overlay, Proxy: own.Proxy, Snapshot: own.Snapshot, Pods: p.pods(n), Probed: probedThere(own, node),
		Underlay: link.Underlay{Device: own.Underlay.Device, MTU: own.Underlay.MTU},
	}
	for _, a := range n.Addresses {
		in.Underlay.Addrs = append(in.Underlay.Addrs, netip.PrefixFrom(a, bitsLike(own.Underlay.Addrs, a)))
	}
	return plan.CompileLinks(in)
}

// probedThere is what the other node will have found: the way between it and this
// one is taken to be the same in both directions, and those to others to be good.
func probedThere(own *plan.Plan, node string) *overlay.Probed {
	if own.Probed == nil {
		return nil
	}
	p := &overlay.Probed{Direct: map[overlay.Way]bool{}}
	for _, k := range own.Snapshot.Nodes.Keys() {
		for _, v6 := range []bool{false, true} {
			p.Direct[overlay.Way{Node: k.Name, V6: v6}] = k.Name != own.Node || own.Probed.Direct[overlay.Way{Node: node, V6: v6}]
		}
	}
	return p
}

func bitsLike(own []netip.Prefix, a netip.Addr) int {
	for _, p := range own {
		if p.Addr().Is6() == a.Is6() {
			return p.Bits()
		}
	}
	return a.BitLen()
}

// addrsByNode are the addresses of pods that the cluster's state names, by their
// nodes; of some twice, or also those of their node.
func addrsByNode(s *cluster.Snapshot) map[string][]netip.Addr {
	addrs := make(map[string][]netip.Addr, s.Nodes.Len())
	for _, p := range s.Pods.All() {
		if !p.HostNetwork && !p.Done {
			addrs[p.Node] = append(addrs[p.Node], p.IPs...)
		}
	}
	for _, slice := range s.Slices.All() {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			addrs[e.Node] = append(addrs[e.Node], e.Address)
		}
	}
	return addrs
}

// pods gives those of a node, each address once.
func (p *peers) pods(n *cluster.Node) []overlay.Pod {
	if p.addrs == nil {
		p.addrs = addrsByNode(p.own.Snapshot)
	}
	addrs := p.addrs[n.Name]
	slices.SortFunc(addrs, netip.Addr.Compare)
	var pods []overlay.Pod
	for _, a := range slices.Compact(addrs) {
		if !slices.Contains(n.Addresses, a) {
			pods = append(pods, overlay.Pod{Link: link.Prefix + "(" + a.String() + ")", Addrs: []netip.Addr{a}})
		}
	}
	return pods
}
