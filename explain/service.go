package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// ServiceChoice is what one node's service rules do with a new connection.
type ServiceChoice struct {
	Node     string         `json:"node"`
	Frontend netip.AddrPort `json:"frontend"`
	Kind     string         `json:"kind"` // ClusterIP, NodePort, ExternalIP, LoadBalancer
	Service  string         `json:"service"`
	PortName string         `json:"port_name,omitempty"`
	Verdict  string         `json:"verdict"` // balance, reject, drop
	Policy   string         `json:"policy"`  // what decides which endpoints may serve, in words
	Affinity string         `json:"affinity"`
	// Endpoints are those of the Service's slices for this port and family, with
	// the exact probability of each for a new connection, or why it has none.
	Endpoints []Endpoint `json:"endpoints"`
	// Masquerade says why the source address is changed, or is empty.
	Masquerade string `json:"masquerade,omitempty"`
	// AtSocket says that the client's socket is connected to the endpoint from the
	// start, so that no rule translates a packet.
	AtSocket bool `json:"at_socket,omitempty"`
	// Shadowed are Services that claim the same frontend and do not have it.
	Shadowed []string `json:"shadowed,omitempty"`
	Objects  []Object `json:"objects,omitempty"`

	backends []netip.AddrPort
	result   proxy.Result
}

// Endpoint is a member of a Service's slices.
type Endpoint struct {
	Addr        netip.AddrPort `json:"addr"`
	Pod         string         `json:"pod,omitempty"`
	Node        string         `json:"node,omitempty"`
	Zone        string         `json:"zone,omitempty"`
	Probability float64        `json:"probability"`
	Fraction    string         `json:"fraction"`
	Why         string         `json:"why,omitempty"` // why it gets nothing
}

// choose asks a node's Table what a new connection meets, and gives false where
// that is nothing. This is the one place that calls proxy.Table.Lookup. local says
// that the node itself sends.
func (t *traveller) choose(p *plan.Plan, src netip.Addr, dst netip.AddrPort, local bool) (*ServiceChoice, bool) {
	if !t.concerns(p, dst.Addr()) {
		return nil, false
	}
	r := t.table(p).Lookup(proxy.Query{
		Client: t.clientKind(p, src, local), Source: src, Protocol: t.protocol, Destination: dst, ToNode: t.isOwn(p, dst.Addr()),
	})
	if r.Verdict == proxy.Pass {
		return nil, false
	}
	c := &ServiceChoice{
		Node: p.Node, Frontend: dst, Kind: r.Frontend.Kind.String(), Service: r.Service.String(), PortName: r.Port, Verdict: string(r.Verdict),
		Policy: r.Reason, Affinity: "none: each connection is chosen anew",
		Endpoints: []Endpoint{}, backends: r.Backends, result: r,
	}
	if r.Affinity {
		c.Affinity = "ClientIP: a client that was here before goes where it went, and the chances are those of a first connection"
	}
	for _, k := range r.Shadowed {
		c.Shadowed = append(c.Shadowed, k.String())
	}
	if r.Masquerade {
		c.Masquerade = r.MasqueradeReason
	}
	t.members(c, p)
	c.Objects = serviceObjects(p.Node, t.protocol, c)
	return c, true
}

// table gives the Table of a node. A Plan may come without one, since few nodes on
// the way of a packet need theirs.
func (t *traveller) table(p *plan.Plan) *proxy.Table {
	if p.Table != nil {
		return p.Table
	}
	if t.tables[p.Node] == nil {
		c := p.Proxy
		c.Node = p.Node // whose endpoints, zone and addresses decide
		if t.tables == nil {
			t.tables = map[string]*proxy.Table{}
		}
		t.tables[p.Node] = proxy.CompileAll(p.Snapshot, c)
	}
	return t.tables[p.Node]
}

// concerns says whether a Table may have something about an address; a Lookup walks
// the whole of it.
func (t *traveller) concerns(p *plan.Plan, a netip.Addr) bool {
	if t.isOwn(p, a) {
		return true
	}
	if t.frontends == nil {
		// But for its own addresses, one node has frontends where the others have them.
		t.frontends = frontendsOf(t.table(p))
	}
	return t.frontends.addrs[a] || slices.ContainsFunc(t.frontends.ranges, func(c netip.Prefix) bool { return c.Contains(a) })
}

// frontends are the addresses that Services have.
type frontends struct {
	addrs  map[netip.Addr]bool
	ranges []netip.Prefix
}

func frontendsOf(table *proxy.Table) *frontends {
	f := &frontends{addrs: make(map[netip.Addr]bool, table.Services.Len()), ranges: table.ServiceCIDRs}
	for _, e := range table.Services.All() {
		for i := range e.Ports {
			for _, front := range e.Ports[i].Frontends {
				f.addrs[front.Addr.Addr()] = true
			}
		}
	}
	return f
}

// clientKind is what the client is to a node.
func (t *traveller) clientKind(p *plan.Plan, src netip.Addr, local bool) proxy.Client {
	switch {
	case local:
		return proxy.Host
	case slices.Contains(p.PodAddrs, src):
		return proxy.LocalPod
	}
	for _, n := range t.Snapshot.Nodes.All() {
		if slices.ContainsFunc(n.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(src) }) {
			return proxy.RemotePod
		}
	}
	return proxy.Outside
}

// masquerades says why a connection to one of the endpoints gets another source,
// or gives "".
func (c *ServiceChoice) masquerades(to netip.AddrPort) string {
	if is, why := c.result.MasqueradeTo(to); is {
		return why
	}
	return ""
}

// members lists the endpoints, chosen or not, of all slices of the port.
func (t *traveller) members(c *ServiceChoice, p *plan.Plan) {
	seen := map[netip.AddrPort]int{}
	add := func(e Endpoint) {
		if i, twice := seen[e.Addr]; !twice {
			seen[e.Addr] = len(c.Endpoints)
			c.Endpoints = append(c.Endpoints, e)
		} else if c.Endpoints[i].Pod == "" {
			c.Endpoints[i].Pod, c.Endpoints[i].Node = e.Pod, e.Node
		}
	}
	n := uint64(len(c.backends))
	t.inSlices(c, func(s *cluster.EndpointSlice, port uint16, m cluster.Endpoint) {
		e := Endpoint{Addr: netip.AddrPortFrom(m.Address, port), Node: m.Node, Zone: m.Zone, Fraction: "0"}
		if m.Pod.Name != "" {
			e.Pod = m.Pod.String()
		}
		if slices.Contains(c.backends, e.Addr) {
			e.Probability, e.Fraction = 1/float64(n), fraction(1, n)
		} else {
			e.Why = t.whyNot(c, s, m, p)
		}
		add(e)
	})
	for _, b := range c.backends {
		add(Endpoint{Addr: b, Probability: 1 / float64(n), Fraction: fraction(1, n)})
	}
	slices.SortStableFunc(c.Endpoints, func(a, b Endpoint) int { return a.Addr.Compare(b.Addr) })
}

func (t *traveller) inSlices(c *ServiceChoice, f func(*cluster.EndpointSlice, uint16, cluster.Endpoint)) {
	of := t.Snapshot.Endpoints.Get(c.result.Service)
	if of == nil {
		return
	}
	for _, s := range of.Slices {
		if s.IPv6 != c.Frontend.Addr().Is6() {
			continue
		}
		for _, port := range s.Ports {
			if port.Name != c.PortName || port.Protocol != t.protocol {
				continue
			}
			for _, e := range s.Endpoints {
				f(s, port.Port, e)
			}
		}
	}
}

// whyNot tells why an endpoint is given nothing.
func (t *traveller) whyNot(c *ServiceChoice, s *cluster.EndpointSlice, e cluster.Endpoint, p *plan.Plan) string {
	switch {
	case s.Headless:
		return "its slice is for DNS only (label service.kubernetes.io/headless)"
	case e.Terminating && !e.Serving:
		return "its pod is ending and no longer serves"
	case e.Terminating:
		return "its pod is ending, and others are ready"
	case !e.Ready:
		return "not ready"
	case e.Node != p.Node && t.isLocal(c):
		return fmt.Sprintf("on %s, and the traffic policy is Local", orUnknown(e.Node))
	case len(e.NodeHints) > 0 && !slices.Contains(e.NodeHints, p.Node):
		return "its hint is for node " + strings.Join(e.NodeHints, ", ")
	case len(e.ZoneHints) > 0:
		return "its hint is for zone " + strings.Join(e.ZoneHints, ", ")
	}
	return "not chosen"
}

// isLocal says that the traffic policy in force is Local.
func (t *traveller) isLocal(c *ServiceChoice) bool {
	s := t.Snapshot.Services.Get(c.result.Service)
	if s == nil {
		return false
	}
	if c.result.Frontend.Kind == proxy.ClusterIP {
		return s.InternalLocal
	}
	return s.ExternalLocal
}

func orUnknown(node string) string {
	if node == "" {
		return "no known node"
	}
	return "node " + node
}

// fraction gives num/den in lowest terms.
func fraction(num, den uint64) string {
	a, b := num, den
	for b != 0 {
		a, b = b, a%b
	}
	if a == 0 || den/a == 1 {
		return fmt.Sprint(num / max(a, 1))
	}
	return fmt.Sprintf("%d/%d", num/a, den/a)
}
