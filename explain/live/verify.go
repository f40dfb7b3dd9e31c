package live

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/guard"
)

// Verification is an Answer with what reality says to it.
type Verification struct {
	Answer  *explain.Answer             `json:"answer"`
	Reports map[string]*observe.Report  `json:"-"`
	Seen    map[string]observe.Sighting `json:"seen"`
	Probe   *observe.ProbeResult        `json:"probe,omitempty"`
	// Took is the path that the probe's connection was given.
	Took *explain.Path `json:"took,omitempty"`
	// Counted is by how much the frontend's counter rose, -1 where there is none.
	Counted int `json:"counted"`
	// NotCounted says why Counted is -1 for a Service.
	NotCounted string `json:"not_counted,omitempty"`
	// First is the first hop, in the order of a packet, where reality differs from
	// the Plan; empty where none does.
	First *Finding `json:"first,omitempty"`
	// All are all findings.
	All []Finding `json:"all"`
}

// Finding is one place where reality differs.
type Finding struct {
	Node string `json:"node"`
	Hop  string `json:"hop"` // the stage and what it says, or what was looked at
	ID   string `json:"id"`
	What string `json:"what"`
	Mend string `json:"mend,omitempty"`
}

func (f Finding) String() string {
	s := f.ID + ": " + f.What
	if f.Node != "" {
		s = "node " + f.Node + ": " + s
	}
	return s
}

// probeTimeout is how long a probe waits for its answer. Loss is not expected, so
// one retransmission of TCP (1 s) is enough.
const probeTimeout = 1800 * time.Millisecond

// Verify explains an access from the nodes' own facts, compares what it rests on
// with the kernels, and sends one real connection.
func (c *Cluster) Verify(ctx context.Context, a explain.Access) (*Verification, error) {
	v := &Verification{Reports: map[string]*observe.Report{}, Counted: -1, All: []Finding{}, Seen: map[string]observe.Sighting{}}
	if err := c.explainFromReports(ctx, v, a); err != nil {
		return nil, err
	}
	v.compare()
	if err := c.decisions(ctx, v); err != nil {
		return nil, err
	}
	if err := c.probe(ctx, v, a); err != nil {
		if len(v.All) == 0 {
			return nil, err
		}
		// What is wrong already may be why: it is worth more than the error.
		v.Probe = nil
		v.All = append(v.All, Finding{Hop: "probe", ID: "probe", What: "could not be sent: " + err.Error()})
	}
	v.judge(a)
	if len(v.All) > 0 {
		v.First = &v.All[0]
	}
	return v, nil
}

// together is up to how many nodes are all asked at once, on the way or not. In
// larger clusters those are asked that the walk comes to.
const together = 16

// explainFromReports walks with the facts of the nodes' reports.
func (c *Cluster) explainFromReports(ctx context.Context, v *Verification, a explain.Access) error {
	report := func(nodes ...string) {
		found, _ := c.Report(ctx, nodes...) // an error counts where the walk comes to its node
		maps.Copy(v.Reports, found)
	}
	if nodes := c.NodeNames(); len(nodes) <= together {
		report(nodes...)
	}
	answer, err := c.walk(c.world(func(node string) {
		if v.Reports[node] == nil && c.failed[node] == nil && slices.Contains(c.NodeNames(), node) {
			report(node)
		}
	}), a)
	v.Answer = answer
	return err
}

// OK says that nothing differs.
func (v *Verification) OK() bool { return v.First == nil }

func (v *Verification) add(f Finding) {
	if !slices.ContainsFunc(v.All, func(o Finding) bool { return o.Node == f.Node && o.ID == f.ID }) {
		v.All = append(v.All, f)
	}
}

// hops gives the hops of all paths in the order of a packet: the paths are equal
// up to where they part.
func (v *Verification) hops() []explain.Hop {
	var list []explain.Hop
	for _, p := range v.Answer.Paths {
		list = append(list, p.Forward...)
	}
	for _, p := range v.Answer.Paths {
		list = append(list, p.Back...)
	}
	return list
}

// compare finds the objects on the way that a node's report names as different.
func (v *Verification) compare() {
	for _, h := range v.hops() {
		r := v.Reports[h.Node]
		if r == nil {
			continue
		}
		for _, o := range h.Objects {
			for _, d := range r.Differences {
				if rests(o, d.ID) && !impliedBy(r, d.ID) {
					v.add(Finding{Node: h.Node, Hop: string(h.Stage) + ": " + h.Text, ID: d.ID, What: d.What, Mend: d.Mend})
				}
			}
		}
	}
	v.underlays()
}

// rests says whether an object of a hop is the one that an id names, or the link
// that it is on, or the table that it is in.
func rests(o explain.Object, id string) bool {
	if o.ID == id {
		return true
	}
	if dev, is := strings.CutPrefix(o.ID, "link "); is {
		return onLink(id, dev)
	}
	f := strings.Fields(o.ID)
	return f[0] == "nft" && f[2] != guard.Name && id == "nft "+f[1]+" table"
}

// impliedBy says that a link's forwarding is off because the whole node's is: the
// kernel sets both.
func impliedBy(r *observe.Report, id string) bool {
	return strings.HasSuffix(id, "/forwarding") && strings.HasPrefix(id, "sysctl net/ipv4/conf/") &&
		slices.ContainsFunc(r.Differences, func(d observe.Difference) bool { return d.ID == "sysctl net/ipv4/ip_forward" })
}

func onLink(id, dev string) bool {
	return strings.HasPrefix(id, "addr "+dev+" ") || strings.HasPrefix(id, "sysctl ") && strings.Contains(id, "/conf/"+dev+"/")
}

// underlays compares the MTUs of the links that join the nodes of the way: a
// packet that one end may send and the other may not receive vanishes.
func (v *Verification) underlays() {
	for _, p := range v.Answer.Paths {
		from, to := v.Reports[v.Answer.From.Node], v.Reports[p.End.Node]
		if from == nil || to == nil || from == to || from.Underlay.MTU == to.Underlay.MTU {
			continue
		}
		low := from
		if to.Underlay.MTU < from.Underlay.MTU {
			low = to
		}
		v.add(Finding{Node: low.Node, Hop: "underlay", ID: "underlay " + low.Underlay.Device,
			What: fmt.Sprintf("has MTU %d, and node %s's has %d: longer packets vanish without a word", low.Underlay.MTU, other(from, to, low).Node, other(from, to, low).Underlay.MTU),
			Mend: fmt.Sprintf("ip link set %s mtu %d", low.Underlay.Device, other(from, to, low).Underlay.MTU)})
	}
}

func other(a, b, not *observe.Report) *observe.Report {
	if a == not {
		return b
	}
	return a
}

// decisions asks the kernels for the routing decisions on the way, which rules
// and routes of others may turn.
func (c *Cluster) decisions(ctx context.Context, v *Verification) error {
	for _, p := range v.Answer.Paths {
		ask := map[string][]netip.Addr{}
		for _, h := range p.Forward {
			if h.Stage == explain.StageRoute && len(h.Objects) > 0 && p.Verdict == explain.Delivered {
				ask[h.Node] = append(ask[h.Node], p.To.Addr())
			}
		}
		for _, node := range slices.Sorted(maps.Keys(ask)) {
			found, err := c.decide(ctx, node, ask[node])
			if err != nil {
				return err
			}
			for _, d := range found {
				v.decision(node, p, d)
			}
		}
	}
	return nil
}

func (v *Verification) decision(node string, p *explain.Path, d observe.Decision) {
	for _, h := range p.Forward {
		if h.Stage != explain.StageRoute || h.Node != node {
			continue
		}
		for _, o := range h.Objects {
			fields := strings.Fields(o.Text)
			i := slices.Index(fields, "dev")
			if !strings.HasPrefix(o.ID, "route ") || i < 0 || i+1 == len(fields) || fields[i+1] == d.Dev && (fields[2] != "via" || fields[3] == d.Via.String()) {
				continue
			}
			what := fmt.Sprintf("the kernel sends %s over %s by way of %s", d.Dst, d.Dev, d.Via)
			if !d.Via.IsValid() {
				what = fmt.Sprintf("the kernel sends %s over %s", d.Dst, d.Dev)
			}
			if d.Problem != "" {
				what = fmt.Sprintf("the kernel does not send to %s: %s", d.Dst, d.Problem)
			}
			v.add(Finding{Node: node, Hop: string(h.Stage) + ": " + h.Text, ID: o.ID, What: what, Mend: fmt.Sprintf("ip route get %s; ip rule; remove what is in the way", d.Dst)})
		}
	}
}
