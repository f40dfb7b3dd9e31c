package live

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
)

// probe sends one connection of its own source port, while every node on the way
// traces it.
func (c *Cluster) probe(ctx context.Context, v *Verification, a explain.Access) error {
	if a.Protocol == cluster.SCTP {
		return nil // no kernel of ours speaks it
	}
	target := c.target(v.Answer)
	if target == "outside" && !slices.Contains(c.Outside, v.Answer.From.Addr) {
		return fmt.Errorf("no probe can be sent from %s: the outside that there is has %v", v.Answer.From.Addr, c.Outside)
	}
	port, err := c.site.port(ctx, target)
	if err != nil {
		return err
	}
	before := c.counter(ctx, v)
	nodes := v.nodes()
	traces := make([]observe.Sighting, len(nodes))
	errs := make([]error, len(nodes))
	var wait sync.WaitGroup
	tctx, cancel := context.WithTimeout(ctx, probeTimeout+c.site.patience())
	defer cancel()
	done := make(chan struct{})
	for i, n := range nodes {
		wait.Go(func() { traces[i], errs[i] = c.trace(tctx, n, a, port, v.Answer.Target.Addr(), done) })
	}
	c.awaitTraces(ctx, nodes, port, v.Answer.Target.Addr().Is6())
	v.Probe = &observe.ProbeResult{}
	err = c.observe(tctx, target, v.Probe, "probe", "--protocol", strings.ToLower(a.Protocol.String()), "--port", strconv.Itoa(int(port)),
		"--timeout", probeTimeout.String(), probeTo(v.Answer))
	close(done)
	wait.Wait()
	if err != nil {
		return err
	}
	for i, n := range nodes {
		if errs[i] != nil {
			traces[i].Problem = errs[i].Error()
		}
		traces[i].Node = n
		v.Seen[n] = traces[i]
	}
	if before >= 0 {
		switch after := c.counter(ctx, v); {
		case after >= before:
			v.Counted = after - before
		case after >= 0:
			v.NotCounted = "the rules were made anew meanwhile"
		}
	}
	v.took()
	return nil
}

// awaitTraces waits until the nodes trace. Where one does not, the probe goes all
// the same, and less is known.
func (c *Cluster) awaitTraces(ctx context.Context, nodes []string, port uint16, v6 bool) {
	args := []string{"tracing", "--port", strconv.Itoa(int(port))}
	if v6 {
		args = append(args, "-6")
	}
	var wait sync.WaitGroup
	for _, n := range nodes {
		wait.Go(func() {
			var is bool
			_ = c.observe(ctx, "node/"+n, &is, args...)
		})
	}
	wait.Wait()
}

// probeTo is what the prober is told: the name, where the question was one.
func probeTo(a *explain.Answer) string {
	if a.Name != nil {
		return a.To
	}
	return a.Target.String()
}

func (c *Cluster) target(a *explain.Answer) string {
	switch a.From.Kind {
	case "pod":
		return a.From.Name
	case "node":
		return "node/" + a.From.Name
	}
	return "outside"
}

// trace watches one connection on a node until done is closed.
func (c *Cluster) trace(ctx context.Context, node string, a explain.Access, port uint16, to netip.Addr, done <-chan struct{}) (observe.Sighting, error) {
	var s observe.Sighting
	args := []string{"trace", "--protocol", strings.ToLower(a.Protocol.String()), "--port", strconv.Itoa(int(port)), "--timeout", (probeTimeout + c.site.patience()).String()}
	if to.Is6() {
		args = append(args, "-6")
	}
	args = append(args, c.site.traceArgs()...)
	err := c.observeUntil(ctx, "node/"+node, &s, done, args...)
	return s, err
}

// nodes are those that packets of the access pass.
func (v *Verification) nodes() []string {
	set := map[string]bool{}
	if v.Answer.From.Node != "" {
		set[v.Answer.From.Node] = true
	}
	for _, h := range v.hops() {
		if h.Node != "" {
			set[h.Node] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}

// countedAt is the frontend by which connections are counted: those by a NodePort
// together, whichever of the node's addresses they came to.
func countedAt(s *explain.ServiceChoice) netip.AddrPort {
	switch {
	case s.Kind != "NodePort":
		return s.Frontend
	case s.Frontend.Addr().Is6():
		return netip.AddrPortFrom(netip.IPv6Unspecified(), s.Frontend.Port())
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), s.Frontend.Port())
}

// counter reads the frontend's counter of new connections, or gives -1.
func (c *Cluster) counter(ctx context.Context, v *Verification) int {
	if len(v.Answer.Services) == 0 {
		return -1
	}
	s := v.Answer.Services[0]
	var list []struct {
		Frontend string `json:"frontend"`
		Protocol string `json:"protocol"`
		New      int    `json:"new_connections"`
	}
	if err := c.observe(ctx, "node/"+s.Node, &list, "counters"); err != nil {
		v.NotCounted = err.Error()
		return -1
	}
	for _, l := range list {
		if l.Frontend == countedAt(s).String() && l.Protocol == v.Answer.Protocol {
			return l.New
		}
	}
	v.NotCounted = fmt.Sprintf("node %s has no counter of %s %s", s.Node, v.Answer.Protocol, countedAt(s))
	return -1
}

// took finds in conntrack which endpoint the connection was given.
func (v *Verification) took() {
	for _, h := range v.hops() {
		for _, f := range v.Seen[h.Node].Flows {
			for _, p := range v.Answer.Paths {
				if f.Reply.Src == p.To {
					v.Took = p
					return
				}
			}
		}
	}
}

// judge says what the probe proves, in the order of a packet. It names a hop only
// where nothing found before explains the loss.
func (v *Verification) judge(a explain.Access) {
	if v.Probe == nil {
		return
	}
	if v.asPredicted() {
		v.judgeCounters()
		return
	}
	if len(v.All) > 0 {
		return
	}
	switch {
	case v.Probe.Outcome == "no-name" || v.Answer.Name != nil && v.Probe.Remote == (netip.AddrPort{}) && strings.Contains(v.Probe.Error, "lookup"):
		v.add(Finding{Node: v.Answer.From.Node, Hop: "name", ID: "dns " + v.Answer.Name.Server, What: "the name does not resolve: " + v.Probe.Error, Mend: "podlane doctor says which DNS server does not answer"})
		return
	case v.endedByFilter():
		return
	}
	v.lost(a)
}

// asPredicted says that the prober met what the Answer says.
func (v *Verification) asPredicted() bool {
	switch v.Answer.Verdict {
	case explain.Delivered:
		// A reset or ICMP of the endpoint itself comes back as well as data does.
		return v.Probe.Outcome == "answered" || v.Probe.Outcome == "refused" && v.arrived()
	case explain.Refused:
		return v.Probe.Outcome == "refused"
	case explain.Dropped:
		return v.Probe.Outcome == "silence"
	case explain.Unreachable:
		return v.Probe.Outcome == "unreachable" || v.Probe.Outcome == "silence"
	case explain.NoName:
		return v.Probe.Outcome == "no-name"
	}
	return true // what is outside of the cluster is not ours to prove
}

// arrived says that the node of an endpoint has seen the connection.
func (v *Verification) arrived() bool {
	for _, p := range v.Answer.Paths {
		for _, f := range v.Seen[p.End.Node].Flows {
			if f.Reply.Src == p.To {
				return true
			}
		}
	}
	return false
}

func (v *Verification) judgeCounters() {
	if v.Answer.Verdict != explain.Delivered || len(v.Answer.Services) == 0 {
		return
	}
	s := v.Answer.Services[0]
	if v.Counted == 0 {
		v.add(Finding{Node: s.Node, Hop: "service", ID: s.Objects[0].ID, What: "its counter did not move: the connection was answered, but not by way of these rules", Mend: "nft list ruleset"})
	}
	if v.Took == nil && v.Probe.Outcome == "answered" {
		if n, f, ok := v.strayFlow(); ok {
			v.add(Finding{Node: n, Hop: "service", ID: s.Objects[len(s.Objects)-1].ID, What: fmt.Sprintf("the connection went to %s, which is none of the endpoints", f.Reply.Src)})
		}
	}
}

// strayFlow is a flow of the probe that ends at no predicted endpoint.
func (v *Verification) strayFlow() (node string, f observe.FlowSeen, ok bool) {
	for _, n := range v.nodes() {
		for _, f := range v.Seen[n].Flows {
			if f.Orig.Dst == v.Answer.Target {
				return n, f, true
			}
		}
	}
	return "", observe.FlowSeen{}, false
}

// endedByFilter names the rule that ended a packet of the probe.
func (v *Verification) endedByFilter() bool {
	for _, n := range v.order() {
		s := v.Seen[n]
		if s.End == "" || strings.Contains(s.End, "podlane-") && !strings.Contains(s.End, "podlane-trace") && v.Answer.Verdict != explain.Delivered {
			continue
		}
		v.add(Finding{Node: n, Hop: "filter", ID: "nft " + s.End, What: "ends the packet (seen by nftrace)", Mend: "let the pods' addresses pass there: an accept of ours does not overrule another table's drop"})
		return true
	}
	return false
}

// order are the nodes in the order of a packet.
func (v *Verification) order() []string {
	var list []string
	for _, h := range v.hops() {
		if h.Node != "" && !slices.Contains(list, h.Node) {
			list = append(list, h.Node)
		}
	}
	return list
}

// lost says between which nodes the probe was lost, by who has seen it.
func (v *Verification) lost(a explain.Access) {
	order := v.order()
	last := ""
	for _, n := range order {
		if v.Seen[n].Seen || len(v.Seen[n].Flows) > 0 {
			last = n
		}
	}
	p := v.Took
	if p == nil && len(v.Answer.Paths) > 0 {
		p = v.Answer.Paths[0]
	}
	f := Finding{Node: last, Hop: "probe", ID: "probe", What: fmt.Sprintf("predicted %s, and the probe met %s", v.Answer.Verdict, v.Probe)}
	switch {
	case p == nil:
	case last == "":
		f.Node, f.Hop, f.ID = v.Answer.From.Node, "pod", "link of "+v.Answer.From.Name
		f.What = "the probe never came to the node: " + v.Probe.String()
	case v.Reports[p.End.Node] != nil && v.Reports[p.End.Node].FastPath && last != p.End.Node:
		f.Hop, f.ID = "underlay or fast path", fmt.Sprintf("underlay %s to %s", last, p.End.Node)
		f.What = fmt.Sprintf("node %s sent it on; node %s has the fast path, past its packet filter, so it is not known whether it came there%s", last, p.End.Node, v.suspects(last, p.End.Node))
		f.Mend = fmt.Sprintf("podlane doctor tries the underlay and the overlay between %s and %s", last, p.End.Node)
	case last != p.End.Node && p.End.Node != "":
		f.Hop, f.ID = "underlay", fmt.Sprintf("underlay %s to %s", last, p.End.Node)
		f.What = fmt.Sprintf("node %s sent it on, and node %s never saw it%s", last, p.End.Node, v.suspects(last, p.End.Node))
		f.Mend = fmt.Sprintf("podlane doctor tries the underlay and the overlay between %s and %s", last, p.End.Node)
	default:
		f.Hop, f.ID = "arrive", "endpoint "+p.To.String()
		f.What = fmt.Sprintf("node %s handed it on, and the prober met %s%s", p.End.Node, v.Probe, v.suspects(p.End.Node))
	}
	v.add(f)
}

// suspects names foreign rules on these nodes that drop something.
func (v *Verification) suspects(nodes ...string) string {
	var list []string
	for _, n := range nodes {
		if r := v.Reports[n]; r != nil {
			for _, f := range r.Foreign {
				list = append(list, "node "+n+": "+f.String())
			}
		}
	}
	if len(list) == 0 {
		return ""
	}
	return "; suspect: " + strings.Join(list, "; ")
}
