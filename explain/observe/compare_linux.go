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
	"github.com/podlane/podlane/guard"
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
	more, err := compareGuard(conn, p)
	return append(diffs, more...), err
}

// compareGuard compares the tables that say which packets the node takes.
func compareGuard(conn *nft.Conn, p *plan.Plan) ([]Difference, error) {
	var diffs []Difference
	for _, r := range p.Guard {
		t := nft.Table{Family: r.Family, Name: guard.Name}
		found, err := conn.Compare(t, r.Tx())
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			diffs = append(diffs, Difference{ID: explain.GuardID(r.Family), Node: p.Node, What: strings.Join(found, "; "),
				Mend: fmt.Sprintf("nft delete table %s; the agent, which is told of that, builds it anew", t)})
		}
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

// element finds the set and the key in an nft command about an element.
var element = regexp.MustCompile(`^(\S+) element (ip6?) \S+ (\S+) \{ (.*?)(?: counter .*| comment .*| : .*)? \}$`)

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
		if id := explain.FrontendID(front.services, front.protocol, front.addr); broken[id] || broken[tableID(f)] {
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
		return Difference{ID: fmt.Sprintf("nft %s %s %s", m[2], m[3], keyOf(m[3], m[4])), Node: node, What: what, Mend: "nft '" + line + "'"}
	}
	return Difference{ID: "nft " + line, Node: node, What: "is missing or not as wanted", Mend: "nft '" + line + "'"}
}

// keyOf is a key without the slot of an endpoint.
func keyOf(set, key string) string {
	key, _, _ = strings.Cut(key, ", ")
	if strings.HasSuffix(set, "endpoints") {
		if i := strings.LastIndex(key, " . "); i > 0 {
			return key[:i]
		}
	}
	return key
}

// frontend is one with its slots.
type frontend struct {
	protocol            cluster.Protocol
	addr                netip.AddrPort // unspecified: a NodePort
	services, endpoints string         // the maps' names
	slots               map[uint32][]netip.AddrPort
}

// mapped gives the frontends of a family whose endpoints are in slots: all that
// have endpoints and no affinity.
func mapped(t *proxy.Table, f nft.Family) []frontend {
	var list []frontend
	seen := map[string]bool{}
	for _, k := range t.Services.Keys() {
		e := t.Services.Get(k)
		for i := range e.Ports {
			p := &e.Ports[i]
			for _, fr := range p.Frontends {
				key := fmt.Sprint(p.Protocol, fr.Addr)
				if nft.FamilyOf(fr.Addr.Addr().Is6()) == f && p.Affinity == 0 && !seen[key] {
					list = append(list, frontendOf(p, fr))
				}
				seen[key] = true
			}
		}
	}
	return list
}

// frontendOf is as proxy/nftables places endpoints: those for clients on the node
// come first, and the node's own beginning with LocalSlot where both differ.
func frontendOf(p *proxy.Port, fr proxy.Frontend) frontend {
	f := frontend{protocol: p.Protocol, addr: fr.Addr, services: "services", endpoints: "endpoints", slots: map[uint32][]netip.AddrPort{}}
	if fr.Kind == proxy.NodePort {
		f.services, f.endpoints = "nodeports", "nodeport-endpoints"
	}
	if way := p.Way(fr); way.Short {
		f.slots[0], f.slots[nftables.LocalSlot] = way.Inside, way.Backends
	} else {
		f.slots[0] = way.Backends
	}
	return f
}

// compareSlots compares the slots of a frontend with its endpoints, in whatever
// order.
func compareSlots(conn *nft.Conn, r nftables.Ruleset, node string, f frontend) (Difference, bool) {
	d := Difference{ID: explain.FrontendID(f.endpoints, f.protocol, f.addr), Node: node,
		Mend: fmt.Sprintf("nft delete table %s; the agent, which does not read endpoints back, then builds it anew", r.Table)}
	set, key := r.Endpoints, nft.Concat(nil).Addr(f.addr.Addr())
	if f.addr.Addr().IsUnspecified() {
		set, key = r.NodePortEndpoints, nil
	}
	key = key.Proto(uint8(f.protocol)).Port(f.addr.Port())
	for first, backends := range f.slots {
		have, want := map[string]bool{}, map[string]bool{}
		for i, b := range backends {
			want[slot(b)] = true
			e, err := conn.GetElement(set, slices.Clone(key).Mark(first+uint32(i)))
			if err != nil {
				d.What = fmt.Sprintf("slot %d of %d is missing", i, len(backends))
				return d, true
			}
			have[string(e.Data)] = true
		}
		if d.What = slotsDiffer(have, want); d.What != "" {
			return d, true
		}
	}
	return d, false
}

func slotsDiffer(have, want map[string]bool) string {
	for data := range have {
		if !want[data] {
			return fmt.Sprintf("a slot leads to %s, which is no endpoint", slotText(data))
		}
	}
	for data := range want {
		if !have[data] {
			return fmt.Sprintf("no slot leads to %s", slotText(data))
		}
	}
	return ""
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
