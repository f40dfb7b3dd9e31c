// Package stale says which UDP flows the kernel must forget: those to a frontend
// of a Service that are answered by what is no longer, or not yet, an endpoint of
// it. It is pure: it lists and deletes no flow itself (kernel/conntrack does).
//
// A TCP client notices that its server is gone and opens a new connection, which
// meets the new rules. A UDP client may send from the same port for ever, and each
// packet renews the flow that leads nowhere. kube-proxy 1.36 leaves such flows
// where a Service has no endpoint at all, and where it was deleted
// (kubernetes#139628, #141371); here these are stale too.
//
// What is not stale is never named: neither traffic policies nor topology nor
// readiness end a flow, as they do not end a TCP connection; only that an
// endpoint does no longer serve does.
package stale

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Index has the UDP frontends of a Table and who may answer for them. Update costs
// what changed. It is not safe for use by several goroutines.
type Index struct {
	table    *proxy.Table
	services map[cluster.Key][]port
	fronts   map[netip.AddrPort][]cluster.Key // mostly one Service each
	nodes    map[uint16][]cluster.Key         // by node port
	// What was a frontend and is none any more, until its family is Settled.
	gone      map[netip.AddrPort]cluster.Key
	goneNodes map[nodePort]cluster.Key
}

// nodePort is a node port at the addresses of a family.
type nodePort struct {
	port uint16
	v6   bool
}

// port is one UDP port of a Service, of both families.
type port struct {
	fronts  []netip.AddrPort // sorted
	node    uint16           // 0: no node port
	serving map[netip.AddrPort]bool
}

// New gives the Index of an empty Table.
func New() *Index {
	return &Index{
		table: &proxy.Table{}, services: map[cluster.Key][]port{},
		fronts: map[netip.AddrPort][]cluster.Key{}, nodes: map[uint16][]cluster.Key{},
		gone: map[netip.AddrPort]cluster.Key{}, goneNodes: map[nodePort]cluster.Key{},
	}
}

// Update brings the Index to a Table. It says whether a flow that was right
// before may be stale now, so that a scan is worth its cost: an endpoint more
// beside others makes none.
func (x *Index) Update(t *proxy.Table) (scan bool) {
	for c := range t.Services.Changed(x.table.Services) {
		was, now := x.services[c.Key], udpPorts(c.New)
		if len(was)+len(now) > 0 {
			scan = x.replace(c.Key, was, now) || scan
		}
	}
	x.table = t
	return scan
}

func (x *Index) replace(k cluster.Key, was, now []port) (scan bool) {
	for _, p := range was {
		for _, f := range p.fronts {
			drop(x.fronts, f, k)
			x.gone[f] = k
		}
		if p.node != 0 {
			drop(x.nodes, p.node, k)
			x.goneNodes[nodePort{p.node, false}], x.goneNodes[nodePort{p.node, true}] = k, k
		}
	}
	for _, p := range now {
		for _, f := range p.fronts {
			x.fronts[f] = append(x.fronts[f], k)
			delete(x.gone, f)
		}
		if p.node != 0 {
			x.nodes[p.node] = append(x.nodes[p.node], k)
			delete(x.goneNodes, nodePort{p.node, false})
			delete(x.goneNodes, nodePort{p.node, true})
		}
	}
	if len(now) == 0 {
		delete(x.services, k)
	} else {
		x.services[k] = now
	}
	return !slices.EqualFunc(was, now, harmless)
}

// harmless says that the change of a port makes no flow stale.
func harmless(was, now port) bool {
	if was.node != now.node || !slices.Equal(was.fronts, now.fronts) || len(was.serving) == 0 && len(now.serving) > 0 {
		return false
	}
	for e := range was.serving {
		if !now.serving[e] {
			return false
		}
	}
	return true
}

// Had tells of a frontend that the kernel's rules had before the first Update: of an
// agent that ran before. Where the Table that comes does not have it, its Service has
// gone while no agent ran.
func (x *Index) Had(k cluster.Key, front netip.AddrPort) {
	switch {
	case !front.Addr().IsUnspecified() && len(x.fronts[front]) == 0:
		x.gone[front] = k
	case front.Addr().IsUnspecified() && len(x.nodes[front.Port()]) == 0:
		x.goneNodes[nodePort{front.Port(), front.Addr().Is6()}] = k
	}
}

// Settled says that all flows of a family were looked at since the last change: its
// frontends that are gone need not be known any more.
func (x *Index) Settled(v6 bool) {
	maps.DeleteFunc(x.gone, func(f netip.AddrPort, _ cluster.Key) bool { return f.Addr().Is6() == v6 })
	maps.DeleteFunc(x.goneNodes, func(p nodePort, _ cluster.Key) bool { return p.v6 == v6 })
}

// Stale says whether a UDP flow must be forgotten, and for which Service: dst is
// where the client sent it, answer who answers, and nodePort says whether an
// address takes node ports on this node.
//
// A flow that is not translated (answer is dst) began before the Service had an
// endpoint. It is stale once there is one; without, it is not ours.
func (x *Index) Stale(dst, answer netip.AddrPort, own func(netip.Addr) bool) (cluster.Key, bool) {
	if of := x.fronts[dst]; len(of) > 0 {
		return of[0], !x.good(of, func(p port) bool { return slices.Contains(p.fronts, dst) }, dst, answer)
	}
	if k, ok := x.gone[dst]; ok {
		return k, answer != dst
	}
	of, now := x.nodes[dst.Port()]
	k, before := x.goneNodes[nodePort{dst.Port(), dst.Addr().Is6()}]
	switch {
	case !now && !before || !own(dst.Addr()) || !x.nodePorts(dst.Addr()):
		return cluster.Key{}, false
	case now:
		return of[0], !x.good(of, func(p port) bool { return p.node == dst.Port() }, dst, answer)
	}
	return k, answer != dst
}

// Has says that a Service answers at an own address of the node and port.
func (x *Index) Has(dst netip.AddrPort) bool {
	return len(x.fronts[dst]) > 0 || len(x.nodes[dst.Port()]) > 0 && x.nodePorts(dst.Addr())
}

// nodePorts says whether NodePorts answer at an own address of the node.
func (x *Index) nodePorts(a netip.Addr) bool {
	return !a.IsLoopback() && slices.ContainsFunc(x.table.NodePorts, func(p netip.Prefix) bool { return p.Contains(a) })
}

// good says whether answer may answer for one of the Services' ports that has the
// frontend dst.
func (x *Index) good(of []cluster.Key, has func(port) bool, dst, answer netip.AddrPort) bool {
	endpoints := 0
	for _, k := range of {
		for _, p := range x.services[k] {
			if !has(p) {
				continue
			}
			if p.serving[answer] {
				return true
			}
			endpoints += ofFamily(p.serving, dst.Addr().Is6())
		}
	}
	return endpoints == 0 && answer == dst
}

func ofFamily(es map[netip.AddrPort]bool, v6 bool) int {
	n := 0
	for e := range es {
		if e.Addr().Is6() == v6 {
			n++
		}
	}
	return n
}

func drop[F comparable](from map[F][]cluster.Key, f F, k cluster.Key) {
	left := slices.DeleteFunc(slices.Clone(from[f]), func(o cluster.Key) bool { return o == k })
	if len(left) == 0 {
		delete(from, f)
		return
	}
	from[f] = left
}

// udpPorts gives the UDP ports of an entry; nil has none.
func udpPorts(e *proxy.Entry) []port {
	if e == nil {
		return nil
	}
	var ports []port
	for i := range e.Ports {
		if p := &e.Ports[i]; p.Protocol == cluster.UDP {
			ports = append(ports, udpPort(p))
		}
	}
	return ports
}

func udpPort(p *proxy.Port) port {
	out := port{serving: map[netip.AddrPort]bool{}}
	for _, f := range p.Frontends {
		if f.Kind == proxy.NodePort {
			out.node = f.Addr.Port()
			continue
		}
		out.fronts = append(out.fronts, f.Addr)
	}
	for _, es := range p.Endpoints {
		// What the rules lead to may be ready though it does not serve: a Service may
		// publish such addresses.
		for _, to := range [][]netip.AddrPort{es.Serving, es.Cluster, es.Local} {
			for _, e := range to {
				out.serving[e] = true
			}
		}
	}
	return out
}
