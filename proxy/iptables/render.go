// Package iptables renders a proxy.Table as the input of iptables-restore: a chain
// for each frontend, in which a rule for each endpoint takes its share by chance,
// as the classic kube-proxy does. It is for kernels that cannot load the maps of
// proxy/nftables: it has the same semantics and not the same speed, since every
// change renders and loads everything.
//
// It is pure: the package apply beneath it runs the programs.
package iptables

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Prefix begins the names of all chains that are ours.
const Prefix = "PL-"

// The bits of the packet mark: maskBit asks for masquerading and is that of
// proxy/nftables, podBit is set from one rule to the next only.
const (
	maskBit = "0x2000/0x2000"
	podBit  = "0x1000/0x1000"
)

// The chains that are always there. Those of base chains lead to the first ones.
const (
	services    = Prefix + "SERVICES"
	nodePorts   = Prefix + "NODEPORTS"
	postrouting = Prefix + "POSTROUTING"
	mark        = Prefix + "MARK"        // masquerade it
	markOthers  = Prefix + "MARK-OTHERS" // unless a pod of this node sent it
	pods        = Prefix + "PODS"        // sets podBit
	filter      = Prefix + "FILTER"
	invalid     = Prefix + "INVALID"
)

// Jump is a rule of a chain of the system that leads to one of ours.
type Jump struct{ Table, Chain, Rule string }

// Jumps are what puts our chains in force: before the rules of others, since those
// may accept what we drop.
var Jumps = []Jump{
	{"nat", "PREROUTING", "-j " + services},
	{"nat", "OUTPUT", "-j " + services},
	{"nat", "POSTROUTING", "-j " + postrouting},
	{"filter", "INPUT", "-m conntrack --ctstate NEW -j " + filter},
	{"filter", "FORWARD", "-m conntrack --ctstate NEW -j " + filter},
	{"filter", "FORWARD", "-m conntrack --ctstate INVALID -j " + invalid},
	{"filter", "OUTPUT", "-m conntrack --ctstate NEW -j " + filter},
}

// Entries are, by table, a chain that is there whenever any of ours is in that table.
var Entries = map[string]string{"nat": services, "filter": filter}

// Rules are our chains of one family with their rules, by table.
type Rules struct {
	Tables   map[string]*Chains // "nat", "filter"
	Problems []cluster.Problem  // frontends that several Services want
}

// Chains are the chains of one table, in order.
type Chains struct {
	Names []string
	rules map[string][]string
}

// declare adds a chain that may stay without rules.
func (c *Chains) declare(chain string) {
	if _, ok := c.rules[chain]; !ok {
		c.Names, c.rules[chain] = append(c.Names, chain), nil
	}
}

// add adds a rule to a chain.
func (c *Chains) add(chain, format string, args ...any) {
	c.declare(chain)
	c.rules[chain] = append(c.rules[chain], fmt.Sprintf(format, args...))
}

// Sizes gives the number of rules of each chain, by table and chain.
func (r *Rules) Sizes() map[string]int {
	sizes := map[string]int{}
	for table, c := range r.Tables {
		for _, name := range c.Names {
			sizes[table+" "+name] = len(c.rules[name])
		}
	}
	return sizes
}

// Restore gives the input of `iptables-restore --noflush` that makes our chains
// what they should be, in one commit of each table: have says which chains of ours
// are there, and missing which Jumps are not.
func (r *Rules) Restore(have map[string][]string, missing []Jump) string {
	var out strings.Builder
	for _, table := range []string{"nat", "filter"} {
		c := r.Tables[table]
		fmt.Fprintf(&out, "*%s\n", table)
		for _, name := range c.Names {
			fmt.Fprintf(&out, ":%s - [0:0]\n", name)
		}
		var stale []string
		for _, name := range have[table] {
			if _, wanted := c.rules[name]; !wanted {
				stale = append(stale, name)
				fmt.Fprintf(&out, ":%s - [0:0]\n", name)
			}
		}
		for _, name := range c.Names {
			for _, rule := range c.rules[name] {
				fmt.Fprintf(&out, "-A %s %s\n", name, rule)
			}
		}
		for _, j := range slices.Backward(missing) {
			if j.Table == table {
				fmt.Fprintf(&out, "-I %s 1 %s\n", j.Chain, j.Rule)
			}
		}
		for _, name := range stale {
			fmt.Fprintf(&out, "-X %s\n", name)
		}
		out.WriteString("COMMIT\n")
	}
	return out.String()
}

// Remove gives the input that removes all of ours: the chains that are there, and
// the Jumps that are.
func Remove(have map[string][]string, missing []Jump) string {
	var out strings.Builder
	for _, table := range []string{"nat", "filter"} {
		if len(have[table]) == 0 {
			continue
		}
		fmt.Fprintf(&out, "*%s\n", table)
		for _, name := range have[table] {
			fmt.Fprintf(&out, ":%s - [0:0]\n", name)
		}
		for _, j := range Jumps {
			if j.Table == table && !slices.Contains(missing, j) {
				fmt.Fprintf(&out, "-D %s %s\n", j.Chain, j.Rule)
			}
		}
		for _, name := range have[table] {
			fmt.Fprintf(&out, "-X %s\n", name)
		}
		out.WriteString("COMMIT\n")
	}
	return out.String()
}

// renderer makes the Rules of one family.
type renderer struct {
	table       *proxy.Table
	pods        []netip.Addr
	v6          bool
	nat, filter *Chains
	owners      map[string]owner // by front
	problems    []cluster.Problem
}

type owner struct {
	key  cluster.Key
	port string
}

// Render gives the rules of one family for a Table and the node's own pods.
func Render(t *proxy.Table, podAddrs []netip.Addr, v6 bool) *Rules {
	r := &renderer{table: t, v6: v6, owners: map[string]owner{},
		nat: &Chains{rules: map[string][]string{}}, filter: &Chains{rules: map[string][]string{}}}
	for _, a := range podAddrs {
		if a.Is6() == v6 {
			r.pods = append(r.pods, a)
		}
	}
	r.fixed()
	clusterIPs := map[netip.Addr]bool{}
	for _, k := range t.Services.Keys() {
		e := t.Services.Get(k)
		for i := range e.Ports {
			r.port(k, &e.Ports[i], clusterIPs)
		}
	}
	r.last(clusterIPs)
	return &Rules{Tables: map[string]*Chains{"nat": r.nat, "filter": r.filter}, Problems: r.problems}
}

// fixed renders what does not depend on Services.
func (r *renderer) fixed() {
	for _, c := range []string{services, nodePorts, mark, markOthers, pods, postrouting} {
		r.nat.declare(c)
	}
	r.filter.declare(filter)
	r.filter.declare(invalid)
	r.nat.add(nodePorts, "-d %s -j RETURN", map[bool]string{false: "127.0.0.0/8", true: "::1/128"}[r.v6])
	r.nat.add(mark, "-j MARK --set-xmark %s", maskBit)
	for _, a := range r.pods {
		r.nat.add(markOthers, "-s %s -j RETURN", a)
		r.nat.add(pods, "-s %s -j MARK --set-xmark %s", a, podBit)
		r.nat.add(postrouting, `-s %s -d %s -m conntrack --ctstate DNAT -m comment --comment "a pod that reached itself" -j MASQUERADE`, a, a)
		r.filter.add(invalid, "-s %s -j DROP", a)
	}
	r.nat.add(markOthers, "-j MARK --set-xmark %s", maskBit)
	r.nat.add(postrouting, "-m mark ! --mark %s -j RETURN", maskBit)
	r.nat.add(postrouting, "-m conntrack ! --ctstate DNAT -j RETURN")
	r.nat.add(postrouting, "-j MARK --set-xmark 0x0/0x2000")
	r.nat.add(postrouting, "-j MASQUERADE --random-fully")
}

// last renders what comes after all frontends.
func (r *renderer) last(clusterIPs map[netip.Addr]bool) {
	for _, p := range r.table.NodePorts {
		if p.Addr().Is6() == r.v6 {
			r.nat.add(services, "-d %s -m addrtype --dst-type LOCAL -j %s", p, nodePorts)
		}
	}
	for _, a := range sortedAddrs(clusterIPs) {
		r.filter.add(filter, "-d %s -m addrtype ! --dst-type LOCAL -p tcp -j REJECT --reject-with tcp-reset", a)
		r.filter.add(filter, "-d %s -m addrtype ! --dst-type LOCAL -j REJECT", a)
	}
	for _, c := range r.table.ServiceCIDRs {
		if c.Addr().Is6() == r.v6 {
			r.filter.add(filter, "-d %s -m addrtype ! --dst-type LOCAL -j DROP", c)
		}
	}
}

func (r *renderer) port(k cluster.Key, p *proxy.Port, clusterIPs map[netip.Addr]bool) {
	for _, f := range p.Frontends {
		if f.Addr.Addr().Is6() != r.v6 {
			continue
		}
		if f.Kind == proxy.ClusterIP {
			clusterIPs[f.Addr.Addr()] = true
		}
		front := front{Frontend: f, protocol: strings.ToLower(p.Protocol.String()), comment: k.String()}
		if p.Name != "" {
			front.comment += ":" + p.Name
		}
		if o, taken := r.owners[front.id()]; taken {
			r.problems = append(r.problems, cluster.Problem{Kind: "Service", Key: k, Field: "spec.ports",
				Err: fmt.Sprintf("%s is already that of Service %s, which goes on having it", front.id(), o.key)})
			continue
		}
		r.owners[front.id()] = owner{k, p.Name}
		r.front(front, p)
	}
}

// chainOf names a chain after what it is for: chains have at most 28 characters.
func chainOf(kind, what string) string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(what)) // it never fails
	return fmt.Sprintf("%s%s-%016x", Prefix, kind, h.Sum64())
}

func sortedAddrs(of map[netip.Addr]bool) []netip.Addr {
	out := make([]netip.Addr, 0, len(of))
	for a := range of {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}
