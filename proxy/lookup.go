package proxy

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Verdict is what happens to a new connection.
type Verdict string

// The verdicts.
const (
	Pass    Verdict = "pass"    // no frontend: the packet goes on as it is
	Balance Verdict = "balance" // to one of the backends, evenly
	Reject  Verdict = "reject"  // refused at once
	Drop    Verdict = "drop"    // nothing comes back
)

// Client is where a connection comes from, as this node sees it.
type Client uint8

// The clients.
const (
	LocalPod  Client = iota // a pod of this node
	Host                    // the node itself: a source address of its own
	RemotePod               // a pod of another node
	Outside                 // any other host
)

func (c Client) String() string {
	return [...]string{"pod of this node", "this node", "pod of another node", "outside"}[c]
}

// inside says that the client is of this node, so that the external traffic policy
// is not for it.
func (c Client) inside() bool { return c == LocalPod || c == Host }

// Query is a new connection that arrives at, or begins on, this node.
type Query struct {
	Client Client
	// Source is the client's address, which load balancer source ranges and the
	// hairpin depend on.
	Source      netip.Addr
	Protocol    cluster.Protocol
	Destination netip.AddrPort
	// ToNode says that the destination is one of this node's own addresses. It is
	// not needed for the addresses of the Node object.
	ToNode bool
}

// Result is what a new connection meets, and why.
type Result struct {
	Verdict Verdict
	// Reason says in words why, for people.
	Reason   string
	Service  cluster.Key // unset where the frontend is no Service's
	Port     string      // the Service port's name
	Frontend Frontend
	// Backends are where it goes, each with probability 1/len(Backends). With
	// Affinity a client that came before goes where it went.
	Backends []netip.AddrPort
	Affinity bool
	// Masquerade says that the source address is replaced by one of the node; see
	// MasqueradeTo. MasqueradeReason says why or why not.
	Masquerade       bool
	MasqueradeReason string
	// Shadowed are other Services that claim the same frontend. The first by name
	// has it.
	Shadowed []cluster.Key

	source netip.Addr
	own    []netip.Addr // the node's
}

// MasqueradeTo says whether the connection is masqueraded when it goes to this
// backend: a pod that reaches itself always is, and to the node itself none is.
func (r Result) MasqueradeTo(b netip.AddrPort) (masquerade bool, reason string) {
	if slices.Contains(r.own, b.Addr()) {
		return false, "the endpoint is on the node itself, and what goes there does not leave it"
	}
	if !r.Masquerade && r.source.IsValid() && r.source == b.Addr() {
		return true, "the client reaches itself, and would see its own address"
	}
	return r.Masquerade, r.MasqueradeReason
}

// Lookup says what a new connection meets. It is the reference that the kernel is
// compared with; it walks the whole Table.
func (t *Table) Lookup(q Query) Result {
	if r, ok := t.find(q, func(f Frontend) bool { return f.Kind != NodePort && f.Addr == q.Destination }); ok {
		return r
	}
	if t.nodePort(q) {
		at := netip.AddrPortFrom(unspecified(q.Destination.Addr().Is6()), q.Destination.Port())
		if r, ok := t.find(q, func(f Frontend) bool { return f.Kind == NodePort && f.Addr == at }); ok {
			return r
		}
	}
	return t.noFrontend(q)
}

// nodePort says that the destination is an address that answers to NodePorts.
func (t *Table) nodePort(q Query) bool {
	a := q.Destination.Addr()
	return t.own(q) && !a.IsLoopback() &&
		slices.ContainsFunc(t.NodePorts, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (t *Table) own(q Query) bool {
	return q.ToNode || slices.Contains(t.facts.addrs, q.Destination.Addr())
}

// find gives what the first Service meets that has a fitting frontend.
func (t *Table) find(q Query, fits func(Frontend) bool) (r Result, found bool) {
	for _, k := range t.Services.Keys() {
		e := t.Services.Get(k)
		for i := range e.Ports {
			p := &e.Ports[i]
			at := slices.IndexFunc(p.Frontends, fits)
			switch {
			case at < 0 || p.Protocol != q.Protocol:
				continue
			case found:
				r.Shadowed = append(r.Shadowed, k)
			default:
				r, found = p.meet(q, p.Frontends[at]), true
				r.Service, r.Port, r.own = k, p.Name, t.facts.addrs
			}
			break
		}
	}
	return r, found
}

// meet says what a connection to a frontend of the port meets.
func (p *Port) meet(q Query, f Frontend) Result {
	w := p.Way(f)
	r := Result{Frontend: f, source: q.Source, Verdict: Balance}
	if len(f.Sources) > 0 && !slices.ContainsFunc(f.Sources, func(s netip.Prefix) bool { return s.Contains(q.Source) }) {
		r.Verdict, r.Reason = Drop, fmt.Sprintf("%s is in none of the load balancer's source ranges", q.Source)
		return r
	}
	r.Backends, r.Affinity = w.Backends, p.Affinity != 0
	policy := "Cluster"
	if f.Kind == ClusterIP && p.InternalLocal || f.Kind != ClusterIP && p.ExternalLocal {
		policy = "Local"
	}
	if w.Short && q.Client.inside() {
		r.Backends, policy = w.Inside, "Cluster, as for all clients of this node"
	}
	r.Reason = fmt.Sprintf("%s, traffic policy %s", f.Kind, policy)
	if len(r.Backends) == 0 {
		r.Verdict, r.Affinity = w.Empty, false
		r.Reason += ": no endpoint"
		if w.Empty == Drop {
			r.Reason += " on this node"
		}
		return r
	}
	r.Masquerade, r.MasqueradeReason = w.masquerade(q.Client)
	return r
}

func (w Way) masquerade(c Client) (bool, string) {
	switch {
	case w.All:
		return true, "all connections to cluster IPs are to be (masquerade-all)"
	case w.Masquerade == Everyone:
		return true, "the endpoint may be on another node, and its answer has to come back here"
	case w.Masquerade == Others && c != LocalPod:
		return true, "the client is no pod of this node, and the endpoint's answer has to come back here"
	case w.Short && c == Host:
		return true, "the client is the node itself, perhaps with the frontend's own address"
	case w.Masquerade == Nobody && !c.inside():
		return false, "the endpoint is on this node"
	}
	return false, "the client is a pod of this node"
}

// noFrontend is for destinations that are no frontend.
func (t *Table) noFrontend(q Query) Result {
	a := q.Destination.Addr()
	if t.own(q) {
		return Result{Verdict: Pass, Reason: "no Service has this address and port"}
	}
	for _, k := range t.Services.Keys() {
		if t.Services.Get(k).hasClusterIP(a) {
			return Result{Verdict: Reject, Service: k, Reason: "a cluster IP, but no port of its Service"}
		}
	}
	for _, c := range t.ServiceCIDRs {
		if c.Contains(a) {
			return Result{Verdict: Drop, Reason: fmt.Sprintf("in the Service CIDR %s, but no Service's", c)}
		}
	}
	return Result{Verdict: Pass, Reason: "no Service has this address and port"}
}

func (e *Entry) hasClusterIP(a netip.Addr) bool {
	return slices.ContainsFunc(e.Ports, func(p Port) bool {
		return slices.ContainsFunc(p.Frontends, func(f Frontend) bool { return f.Kind == ClusterIP && f.Addr.Addr() == a })
	})
}
