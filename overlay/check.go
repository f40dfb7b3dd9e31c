package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Check tells what keeps the own node from having pods at all: its object is
// missing, or it lacks an address or a pod CIDR. While there is such a problem
// Compile gives an empty State, and the kernel is best left as it is: an object
// that is gone for a moment must not cost running pods their network.
func (in Input) Check() []cluster.Problem {
	key := cluster.Key{Name: in.Node}
	own := in.own()
	switch {
	case own == nil:
		return []cluster.Problem{nodeProblem(key, "", "there is no Node object of this name: register the node, or set the agent's node name to the object's")}
	case len(own.Addresses) == 0:
		return []cluster.Problem{nodeProblem(key, "status.addresses", "no InternalIP: the kubelet or the cloud controller must set one")}
	case len(own.PodCIDRs) == 0:
		return []cluster.Problem{nodeProblem(key, "spec.podCIDRs",
			"empty: start kube-controller-manager with --allocate-node-cidrs and --cluster-cidr, or set them by hand")}
	}
	return nil
}

func nodeProblem(k cluster.Key, field, err string) cluster.Problem {
	return cluster.Problem{Kind: "Node", Key: k, Field: field, Err: err}
}

// members is the nodes that can be used, with the pod CIDRs that can be used.
type members struct {
	own      cidrs
	peers    []cidrs // by name
	problems []cluster.Problem
}

// cidrs is a node and those of its pod CIDRs that clash with nothing.
type cidrs struct {
	node *cluster.Node
	pods []netip.Prefix
}

// survey sorts out the nodes. Where two clash, the own node wins, then the older
// one, so that a wrong node that joins takes nothing from those that are there. A
// node that is about to go comes last, since its address may be its successor's.
// Of the same age, the one whose name sorts first wins: the outcome does not depend
// on any order of events.
func survey(in Input) members {
	m := members{own: cidrs{node: in.own()}}
	nodes := []*cluster.Node{m.own.node}
	for _, k := range in.Nodes.Keys() {
		if k.Name != in.Node {
			nodes = append(nodes, in.Nodes.Get(k))
		}
	}
	slices.SortFunc(nodes[1:], func(a, b *cluster.Node) int { return cmp.Or(byAge(a, b), cmp.Compare(a.Name, b.Name)) })
	s := newSurveyor(nodes, in.Underlay.Addrs)
	for i, n := range nodes {
		c := cidrs{n, s.usable(n)}
		switch {
		case i == 0:
			s.claim(n)
			m.own = c
		case s.address(n) && len(c.pods) > 0:
			m.peers = append(m.peers, c)
		}
	}
	slices.SortFunc(m.peers, func(a, b cidrs) int { return cmp.Compare(a.node.Name, b.node.Name) })
	m.problems = s.problems
	return m
}

// Peer is another node that can be used, with those of its pod CIDRs that can be.
type Peer struct {
	Node     *cluster.Node
	PodCIDRs []netip.Prefix
}

// Peers gives the other nodes that Compile joins, by name.
func Peers(in Input) []Peer {
	if in.Check() != nil {
		return nil
	}
	return survey(in).list()
}

func (m members) list() []Peer {
	peers := make([]Peer, len(m.peers))
	for i, p := range m.peers {
		peers[i] = Peer{p.node, p.pods}
	}
	return peers
}

// byAge orders older nodes before younger ones, and those that are about to go
// last.
func byAge(a, b *cluster.Node) int {
	if a.Leaving != b.Leaving {
		if b.Leaving {
			return -1
		}
		return 1
	}
	return cmp.Compare(a.Created, b.Created)
}

// surveyor finds clashes in time that grows with the nodes, not with their
// square: prefixes overlap when one contains the other's address, so a lookup
// for each length that occurs finds them.
type surveyor struct {
	problems []cluster.Problem
	lengths  map[bool][]int               // prefix lengths that occur, by family (true: IPv6)
	hosts    map[netip.Prefix]host        // every prefix of such a length around a node's address → the address's owner
	taken    map[netip.Prefix]cidrOwner   // pod CIDRs in use
	around   map[netip.Prefix]cidrOwner   // shorter prefixes around those
	addrs    map[netip.Addr]*cluster.Node // node addresses in use
}

type host struct {
	addr netip.Addr
	node *cluster.Node // nil: this node's underlay
}

func (h host) owner() string {
	if h.node == nil {
		return "this node's underlay"
	}
	return "node " + h.node.Name
}

type cidrOwner struct {
	cidr netip.Prefix
	node *cluster.Node
}

func newSurveyor(nodes []*cluster.Node, ownAddrs []netip.Prefix) *surveyor {
	s := &surveyor{
		lengths: map[bool][]int{}, hosts: map[netip.Prefix]host{}, addrs: map[netip.Addr]*cluster.Node{},
		taken: map[netip.Prefix]cidrOwner{}, around: map[netip.Prefix]cidrOwner{},
	}
	for _, n := range nodes {
		for _, c := range n.PodCIDRs {
			if v6 := c.Addr().Is6(); !slices.Contains(s.lengths[v6], c.Bits()) {
				s.lengths[v6] = append(s.lengths[v6], c.Bits())
			}
		}
	}
	for _, p := range ownAddrs {
		s.host(p.Addr(), nil)
	}
	for _, n := range slices.Backward(nodes) { // the first of two owners is named
		for _, a := range n.Addresses {
			s.host(a, n)
		}
	}
	return s
}

func (s *surveyor) host(a netip.Addr, owner *cluster.Node) {
	for _, p := range s.containing(a) {
		s.hosts[p] = host{a, owner}
	}
}

// containing gives the prefixes of all lengths that occur around a.
func (s *surveyor) containing(a netip.Addr) []netip.Prefix {
	ps := make([]netip.Prefix, 0, 4)
	for _, bits := range s.lengths[a.Is6()] {
		if p, err := a.Prefix(bits); err == nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// usable gives the pod CIDRs of a node that clash with nothing before it.
func (s *surveyor) usable(n *cluster.Node) []netip.Prefix {
	if len(n.PodCIDRs) == 0 {
		s.problem(n, "spec.podCIDRs", "empty: its pods cannot be reached until kube-controller-manager assigns one")
	}
	var ok []netip.Prefix
	for i, c := range n.PodCIDRs {
		c = c.Masked()
		if why := s.clash(n, c); why != "" {
			s.problem(n, fmt.Sprintf("spec.podCIDRs[%d]", i), fmt.Sprintf("%s %s: it is not used", c, why))
			continue
		}
		s.take(c, n)
		ok = append(ok, c)
	}
	return ok
}

func (s *surveyor) clash(n *cluster.Node, c netip.Prefix) string {
	if !Gateway(c).IsValid() {
		return "has no room for a gateway and a pod"
	}
	// An address of a node that came later is that node's problem.
	if h, is := s.hosts[c]; is && (h.node == nil || byAge(n, h.node) >= 0) {
		return fmt.Sprintf("contains the address %s of %s", h.addr, h.owner())
	}
	if o, is := s.around[c]; is {
		return fmt.Sprintf("overlaps %s of node %s", o.cidr, o.node.Name)
	}
	for _, p := range s.containing(c.Addr()) {
		if o, is := s.taken[p]; is && p.Bits() <= c.Bits() {
			return fmt.Sprintf("overlaps %s of node %s", o.cidr, o.node.Name)
		}
	}
	return ""
}

func (s *surveyor) take(c netip.Prefix, node *cluster.Node) {
	s.taken[c] = cidrOwner{c, node}
	for _, p := range s.containing(c.Addr()) {
		if p.Bits() <= c.Bits() {
			s.around[p] = cidrOwner{c, node}
		}
	}
}

// address tells whether a peer's addresses are its own alone.
func (s *surveyor) address(n *cluster.Node) bool {
	if len(n.Addresses) == 0 {
		s.problem(n, "status.addresses", "no InternalIP: its pods cannot be reached")
		return false
	}
	for _, a := range n.Addresses {
		if other := s.addrs[a]; other != nil {
			s.problem(n, "status.addresses", fmt.Sprintf("%s is node %s's too: its pods cannot be reached", a, other.Name))
			return false
		}
		for _, p := range s.containing(a) {
			if o, is := s.taken[p]; is {
				s.problem(n, "status.addresses", fmt.Sprintf("%s is in %s, the pods of node %s: its pods cannot be reached", a, o.cidr, o.node.Name))
				return false
			}
		}
	}
	s.claim(n)
	return true
}

func (s *surveyor) claim(n *cluster.Node) {
	for _, a := range n.Addresses {
		s.addrs[a] = n
	}
}

func (s *surveyor) problem(n *cluster.Node, field, err string) {
	s.problems = append(s.problems, nodeProblem(n.Key, field, err))
}
