// Package explain walks one access, from a pod, a node or an outside address to
// a name or an address, through the Plans of the nodes concerned, and says hop by
// hop where its packets go and which kernel object sends them there. It is pure:
// it reads no kernel and sends nothing (explain/observe does), and it decides
// nothing: what a Plan does not have, a packet does not meet.
package explain

import (
	"maps"
	"net/netip"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy/ebpf"
)

// Version is that of the Answer as JSON. Fields may be added to a version.
const Version = 1

// World is what a walk reads.
type World struct {
	Snapshot *cluster.Snapshot
	// Plans are the nodes' Plans, by node. Where the Plan of a node is missing the
	// walk ends at that node's door and says so.
	Plans map[string]*plan.Plan
	// Compile makes the Plan of a node that is not among Plans, or gives nil. It
	// may be nil. The Plan needs no Table (see plan.CompileLinks): one is made where
	// the walk needs it.
	Compile func(node string) *plan.Plan
	// Names are the pods of links, by node and link, where the Snapshot lacks them.
	Names map[string]map[string]cluster.Key
	// Domain is the cluster's zone, "cluster.local" where it is empty.
	Domain string
	// DNS is the Service of the cluster's DNS, kube-system/kube-dns where it is
	// empty.
	DNS cluster.Key
	// Fast is what the nodes' fast paths take, by node, where that is known.
	Fast map[string]*fastpath.State
	// Sockets are the pods whose connections are translated at their sockets, by node,
	// where that is known.
	Sockets map[string]*ebpf.Clients
	// podsAt names the pods by their addresses; nil before it is asked for.
	podsAt map[netip.Addr]cluster.Key
	// Outside is the address that FROM "outside" stands for, in each family.
	Outside []netip.Addr
}

// Verdict is what becomes of a packet in the end.
type Verdict string

// The verdicts.
const (
	Delivered   Verdict = "delivered"   // reaches the process's pod or node, and its answer comes back
	Refused     Verdict = "refused"     // the service rules answer at once: reset, or port unreachable
	Dropped     Verdict = "dropped"     // the service rules drop it
	Unreachable Verdict = "unreachable" // a route answers: no such host
	Leaves      Verdict = "leaves"      // by a default route, out of the cluster's network
	Unanswered  Verdict = "unanswered"  // it arrives, and the answer does not come back as one
	Unknown     Verdict = "unknown"     // reaches a node whose state is not known here
	NoName      Verdict = "no-name"     // the name does not resolve
)

// Answer is an explanation.
type Answer struct {
	Version  int              `json:"version"`
	From     End              `json:"from"`
	To       string           `json:"to"` // as it was asked
	Protocol string           `json:"protocol"`
	Name     *Resolution      `json:"name,omitempty"`
	Target   netip.AddrPort   `json:"target,omitzero"` // the address that packets are sent to
	Services []*ServiceChoice `json:"services,omitempty"`
	// Paths has one for each endpoint that a packet can go to. Without a Service
	// there is one.
	Paths []*Path `json:"paths"`
	// Verdict is that of all paths, where it is the same for all; else it is
	// Delivered where any is, and the paths differ.
	Verdict Verdict  `json:"verdict"`
	Reason  string   `json:"reason,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// End is where packets come from or end.
type End struct {
	Kind string      `json:"kind"` // pod, node or outside
	Pod  cluster.Key `json:"-"`
	Name string      `json:"name"` // "default/curl", "n1", or the address
	Node string      `json:"node,omitempty"`
	// Addrs are its addresses, of which Addr is the one of this access.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Addr  netip.Addr   `json:"addr,omitzero"`
	// HostNetwork is of a pod without a network of its own.
	HostNetwork bool `json:"host_network,omitempty"`
}

// Path is the way to one endpoint and back.
type Path struct {
	To          netip.AddrPort `json:"to"` // after translation
	End         End            `json:"end"`
	Probability float64        `json:"probability"` // of a new connection, 0 to 1
	Fraction    string         `json:"fraction"`    // the same exactly, such as "1/3"
	// Source is the address that the endpoint sees. It is not valid where the kernel
	// chooses one that a Plan does not tell.
	Source    netip.Addr `json:"source,omitzero"`
	SourceWhy string     `json:"source_why"`
	MTU       int        `json:"mtu"` // the longest packet that passes both ways, in bytes; 0: not known
	Forward   []Hop      `json:"forward"`
	Back      []Hop      `json:"back"`
	Verdict   Verdict    `json:"verdict"`
	Reason    string     `json:"reason,omitempty"`

	num, den uint64
}

// Stage is what happens at a Hop.
type Stage string

// The stages.
const (
	StageSend     Stage = "send"     // a process sends
	StagePod      Stage = "pod"      // out of or into a pod, over its pair of links
	StageService  Stage = "service"  // the service rules choose an endpoint
	StageSource   Stage = "source"   // the source address is changed, or back
	StageRoute    Stage = "route"    // a routing decision
	StageTunnel   Stage = "vxlan"    // into or out of VXLAN
	StageFast     Stage = "fast"     // past routing and netfilter
	StageGuard    Stage = "guard"    // the node does not take it for what it seems
	StageUnderlay Stage = "underlay" // over the network that joins the nodes
	StageArrive   Stage = "arrive"   // at the process
)

// Hop is one step of a packet.
type Hop struct {
	Node    string   `json:"node,omitempty"` // empty: outside of the nodes
	Stage   Stage    `json:"stage"`
	Text    string   `json:"text"`
	Objects []Object `json:"objects,omitempty"`
}

// Object is a kernel object that a Hop rests on. ID names it among the node's:
// the kind and its key ("route 10.244.2.0/24", "fdb pl-vxlan 0a:..."), the same as
// in the differences that explain/observe finds.
type Object struct {
	ID   string `json:"id"`
	Node string `json:"node"`
	Text string `json:"text"` // in the words of ip(8), bridge(8), nft(8) or sysctl(8)
	Look string `json:"look"` // the command that prints it, to be run on the node
}

// plan gives the Plan of a node, or nil.
func (w *World) plan(node string) *plan.Plan {
	p, known := w.Plans[node]
	if !known && w.Compile != nil && node != "" {
		p = w.Compile(node)
		w.Plans[node] = p
	}
	return p
}

func (w *World) defaults() {
	w.Plans = maps.Clone(w.Plans)
	if w.Plans == nil {
		w.Plans = map[string]*plan.Plan{}
	}
	if w.Domain == "" {
		w.Domain = "cluster.local"
	}
	if w.DNS == (cluster.Key{}) {
		w.DNS = cluster.Key{Namespace: "kube-system", Name: "kube-dns"}
	}
}

// Access is the question.
type Access struct {
	From     string // "default/curl", "node/n1", "outside" or an address
	To       string // NAME:PORT, IP:PORT, svc/NS/NAME:PORT, or a pod
	Protocol cluster.Protocol
	IPv6     bool // of several addresses take that of IPv6
	// Enter is the node at which packets from outside come in, where the target
	// does not say it.
	Enter string
}

// Explain walks an access. The error says what of the question there is not: a
// name or an address that leads nowhere is an answer.
func Explain(w World, a Access) (*Answer, error) {
	w.defaults()
	q, err := w.parse(a)
	if err != nil {
		return nil, err
	}
	ans := &Answer{Version: Version, From: q.from, To: a.To, Protocol: a.Protocol.String(), Paths: []*Path{}}
	if q.name != "" && !w.resolve(&q, ans) {
		ans.Verdict = NoName
		return ans, nil
	}
	if err := w.source(&q, a.Enter); err != nil {
		return nil, err
	}
	ans.From, ans.Target = q.from, netip.AddrPortFrom(q.addr, q.port)
	t := &traveller{World: &w, answer: ans, protocol: a.Protocol}
	t.start(q)
	ans.conclude()
	return ans, nil
}

// conclude gives the Answer's verdict from its paths'.
func (a *Answer) conclude() {
	for _, p := range a.Paths {
		if p.den > 0 {
			p.Probability = float64(p.num) / float64(p.den)
			p.Fraction = fraction(p.num, p.den)
		}
		if a.Verdict == "" || p.Verdict == Delivered && a.Verdict != Delivered {
			a.Verdict, a.Reason = p.Verdict, p.Reason
		}
	}
}
