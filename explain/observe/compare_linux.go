package observe

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
	"github.com/podlane/podlane/proxy/nftables/apply"
)

// Difference is a kernel object that is not as the Plan wants it.
type Difference struct {
	ID   string `json:"id"` // as explain.Object has it
	Node string `json:"node"`
	What string `json:"what"` // what is there instead
	Mend string `json:"mend"` // the command that makes it right
}

func (d Difference) String() string { return fmt.Sprintf("node %s: %s: %s", d.Node, d.ID, d.What) }

// Compare gives all differences between a Plan and the kernel of the calling
// thread's network namespace.
func Compare(p *plan.Plan) ([]Difference, error) {
	diffs, err := compareLinks(p)
	if err != nil {
		return nil, err
	}
	conn, err := nft.Dial(0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		more, err := compareServices(conn, f, p)
		if err != nil {
			return nil, err
		}
		diffs = append(diffs, more...)
	}
	return diffs, nil
}

func compareLinks(p *plan.Plan) ([]Difference, error) {
	handle, err := link.Open("")
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	have, err := handle.Read(slices.Sorted(maps.Keys(p.Link.Sysctls))...)
	if err != nil {
		return nil, err
	}
	var diffs []Difference
	for _, dev := range link.Missing(have, *p.Link) {
		diffs = append(diffs, Difference{ID: "link " + dev, Node: p.Node, What: "the link of a pod on record is missing", Mend: "delete the pod: only a new one gets a new link"})
	}
	for _, op := range link.Diff(have, *p.Link) {
		diffs = append(diffs, Difference{ID: explain.ObjectID(op.Object), Node: p.Node, What: whatIs(op, have), Mend: op.String()})
	}
	return diffs, nil
}

// whatIs says what the kernel has in the place of what an operation would make.
func whatIs(op link.Op, have link.State) string {
	switch op.Verb {
	case link.Delete:
		return "is there and is not wanted"
	case link.Add:
		return "is missing"
	}
	switch o := op.Object.(type) {
	case link.RouteObject:
		h := have.Routes[o.RouteKey]
		return fmt.Sprintf("is by way of %s over %s, instead of %s over %s", via(h), h.Dev, via(o.Route), o.Dev)
	case link.NeighObject:
		return fmt.Sprintf("has the MAC %s instead of %s", have.Neighs[o.NeighKey], o.MAC)
	case link.FDBObject:
		return fmt.Sprintf("leads to %s instead of %s", have.FDB[o.FDBKey], o.Dst)
	case link.SysctlObject:
		was, ok := have.Sysctls[o.Path]
		if !ok {
			return "does not exist"
		}
		return fmt.Sprintf("is %s instead of %s", was, o.Value)
	case link.LinkObject:
		return linkDiffers(o)
	}
	return "differs"
}

func via(r link.Route) string {
	if r.Via.IsValid() {
		return r.Via.String()
	}
	return "the link itself"
}

func linkDiffers(o link.LinkObject) string {
	var what []string
	if o.Have.MTU != o.MTU {
		what = append(what, fmt.Sprintf("has MTU %d instead of %d", o.Have.MTU, o.MTU))
	}
	if o.MAC != (link.MAC{}) && o.Have.MAC != o.MAC {
		what = append(what, fmt.Sprintf("has the MAC %s instead of %s", o.Have.MAC, o.MAC))
	}
	if o.Have.Down {
		what = append(what, "is down")
	}
	return strings.Join(what, ", ")
}

// element finds the frontend in an nft command about one of the maps.
var element = regexp.MustCompile(`^(\S+) element (ip6?) \S+ (\S+) \{ (\S+ \. (?:tcp|udp|sctp) \. \d+)`)

// compareServices compares the service tables of a family. Endpoints are read
// one by one, which the kernel finds by their keys.
func compareServices(conn *nft.Conn, f nft.Family, p *plan.Plan) ([]Difference, error) {
	pods := slices.DeleteFunc(slices.Clone(p.PodAddrs), func(a netip.Addr) bool { return nft.FamilyOf(a.Is6()) != f })
	lines, err := apply.Differences(conn, f, p.Table, pods)
	if err != nil {
		return nil, err
	}
	var diffs []Difference
	broken := map[string]bool{}
	for _, line := range lines {
		d := serviceDifference(p.Node, f, line)
		if !broken[d.ID] {
			diffs = append(diffs, d)
		}
		broken[d.ID] = true
	}
	forced, err := apply.InForce(conn, f)
	if err != nil || len(forced) == 0 {
		return diffs, err
	}
	r := nftables.NewRuleset(f, forced[0].Name)
	for _, front := range mapped(p.Table, f) {
		if id := explain.FrontendID("services", front.protocol, front.addr); broken[id] || broken[tableID(f)] {
			continue
		}
		if d, differs := compareSlots(conn, r, p.Node, front); differs {
			diffs = append(diffs, d)
		}
	}
	return diffs, nil
}

func tableID(f nft.Family) string { return fmt.Sprintf("nft %s table", f) }

// serviceDifference reads a line of apply.Differences.
func serviceDifference(node string, f nft.Family, line string) Difference {
	const mend = "podlane agent makes it right when it runs; restart it"
	if text, is := strings.CutPrefix(line, "# "); is {
		return Difference{ID: tableID(f), Node: node, What: text, Mend: mend}
	}
	if m := element.FindStringSubmatch(line); m != nil {
		what := map[string]string{"create": "is missing", "add": "is missing", "delete": "is not as wanted"}[m[1]]
		return Difference{ID: fmt.Sprintf("nft %s %s %s", m[2], m[3], m[4]), Node: node, What: what, Mend: "nft '" + line + "'"}
	}
	return Difference{ID: "nft " + line, Node: node, What: "is missing or not as wanted", Mend: "nft '" + line + "'"}
}

// frontend is one that the endpoints map serves.
type frontend struct {
	protocol cluster.Protocol
	addr     netip.AddrPort
	backends []netip.AddrPort
}

// mapped gives the cluster IPs of a family that have endpoints and no affinity:
// those are in the endpoints map by their own address.
func mapped(t *proxy.Table, f nft.Family) []frontend {
	var list []frontend
	seen := map[string]bool{}
	for _, k := range t.Services.Keys() {
		e := t.Services.Get(k)
		for i := range e.Ports {
			p := &e.Ports[i]
			for _, fr := range p.Frontends {
				key := fmt.Sprint(p.Protocol, fr.Addr)
				way := p.Way(fr)
				if fr.Kind == proxy.ClusterIP && nft.FamilyOf(fr.Addr.Addr().Is6()) == f && p.Affinity == 0 && len(way.Backends) > 0 && !seen[key] {
					list = append(list, frontend{p.Protocol, fr.Addr, way.Backends})
				}
				seen[key] = true
			}
		}
	}
	return list
}

// compareSlots compares the slots of a frontend with its endpoints, in whatever
// order.
func compareSlots(conn *nft.Conn, r nftables.Ruleset, node string, f frontend) (Difference, bool) {
	d := Difference{ID: explain.FrontendID("endpoints", f.protocol, f.addr), Node: node, Mend: "podlane agent makes it right when it runs; restart it"}
	have := map[string]bool{}
	want := map[string]bool{}
	for i := range f.backends {
		want[slot(f.backends[i])] = true
		key := nft.Concat(nil).Addr(f.addr.Addr()).Proto(uint8(f.protocol)).Port(f.addr.Port()).Mark(uint32(i))
		e, err := conn.GetElement(r.Endpoints, key)
		if err != nil {
			d.What = fmt.Sprintf("slot %d of %d is missing", i, len(f.backends))
			return d, true
		}
		have[string(e.Data)] = true
	}
	for data := range have {
		if !want[data] {
			d.What = fmt.Sprintf("a slot leads to %s, which is no endpoint", slotText(data))
			return d, true
		}
	}
	for data := range want {
		if !have[data] {
			d.What = fmt.Sprintf("no slot leads to %s", slotText(data))
			return d, true
		}
	}
	return d, false
}

func slot(b netip.AddrPort) string {
	return string(nft.Concat(nil).Addr(b.Addr()).Port(b.Port()))
}

func slotText(data string) string {
	if len(data) < 8 {
		return "nothing"
	}
	a, _ := netip.AddrFromSlice([]byte(data[:len(data)-4]))
	return netip.AddrPortFrom(a, uint16(data[len(data)-4])<<8|uint16(data[len(data)-3])).String()
}
