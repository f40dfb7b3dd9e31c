// Package hostport decides how the node's own addresses answer for ports of its pods
// (hostPort in a pod's spec). It is pure; it serves no Service (package proxy), and
// which pod has which port is decided by the scheduler.
package hostport

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// Name is the table's. It has no number, by which it differs from the service
// tables.
const Name = nft.Prefix + "hostport"

// Port is a port of the node that leads to a pod.
type Port struct {
	Protocol cluster.Protocol
	Host     netip.AddrPort // without an address: all of the node's
	Pod      netip.AddrPort
}

// Ports gives those of a family, sorted, one for each port of the node: where two
// pods claim the same, the one that sorts first has it.
func Ports(all []Port, f nft.Family) []Port {
	var out []Port
	for _, p := range all {
		if p.Pod.Addr().Is6() == (f == nft.IPv6) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.Host.Compare(b.Host), a.Pod.Compare(b.Pod))
	})
	return slices.CompactFunc(out, func(a, b Port) bool { return a.Protocol == b.Protocol && a.Host == b.Host })
}

// Maps are those of a family's table, of ports of all of the node's addresses and of one.
func Maps(f nft.Family) (onAll, onOne nft.Set) {
	t := nft.Table{Family: f, Name: Name}
	addr := nft.AddrType(f)
	to := []nft.Type{addr, nft.InetService}
	onAll = nft.Set{Table: t, Name: "ports", Key: []nft.Type{nft.InetProto, nft.InetService}, Data: to}
	onOne = nft.Set{Table: t, Name: "addresses", Key: []nft.Type{addr, nft.InetProto, nft.InetService}, Data: to}
	return onAll, onOne
}

// Tx brings the ports of a family into force, whatever the table has: its chains
// and maps are emptied and filled in one transaction, and the base chains are never
// gone.
//
//	prerouting, output ─▶ to an address of the node ─▶ hostports ─▶ dnat by @addresses, else by @ports
//	postrouting: a pod that reaches itself by its node ─▶ masquerade
//
// The node's loopback addresses are left out: packets from them cannot leave for a
// pod.
func Tx(f nft.Family, ports []Port) *nft.Tx {
	onAll, onOne := Maps(f)
	t, addr := onAll.Table, nft.AddrType(f)
	itself := nft.Set{Table: t, Name: "itself", Key: []nft.Type{addr, addr}}
	tx := &nft.Tx{}
	tx.AddTable(t)
	for _, s := range []nft.Set{onAll, onOne, itself} {
		tx.AddSet(s)
		tx.FlushSet(s)
	}
	chains(tx, t, onAll, onOne, itself)
	pods := map[netip.Addr]bool{}
	for _, p := range ports {
		e := nft.Element{Key: nft.Concat(nil).Proto(uint8(p.Protocol)).Port(p.Host.Port()), Data: nft.Concat(nil).Addr(p.Pod.Addr()).Port(p.Pod.Port())}
		if p.Host.Addr().IsValid() {
			e.Key = append(nft.Concat(nil).Addr(p.Host.Addr()), e.Key...)
			tx.AddElements(onOne, e)
		} else {
			tx.AddElements(onAll, e)
		}
		if a := p.Pod.Addr(); !pods[a] {
			pods[a] = true
			tx.AddElements(itself, nft.Element{Key: nft.Concat(nil).Addr(a).Addr(a)})
		}
	}
	return tx
}

func chains(tx *nft.Tx, t nft.Table, onAll, onOne, itself nft.Set) {
	f := t.Family
	base := func(name string, hook nft.Hook, priority int32) nft.Chain {
		return nft.Chain{Table: t, Name: name, Hook: hook, Type: "nat", Priority: priority}
	}
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	if f == nft.IPv6 {
		loopback = netip.MustParsePrefix("::1/128")
	}
	hostports := nft.Chain{Table: t, Name: "hostports"}
	here := []nft.Part{nft.DaddrLocal(), nft.NotWithin(nft.Daddr(f), loopback), nft.Do(nft.Jump, hostports.Name)}
	for _, c := range []struct {
		chain nft.Chain
		rules []nft.Rule
	}{
		{hostports, []nft.Rule{
			nft.NewRule(nft.DNATMap(f, onOne, nft.Daddr(f), nft.L4Proto(), nft.Dport())),
			nft.NewRule(nft.DNATMap(f, onAll, nft.L4Proto(), nft.Dport())),
		}},
		{base("prerouting", nft.Prerouting, nft.DstNAT), []nft.Rule{nft.NewRule(here...)}},
		{base("output", nft.Output, nft.DstNAT), []nft.Rule{nft.NewRule(here...)}},
		{base("postrouting", nft.Postrouting, nft.SrcNAT), []nft.Rule{nft.NewRule(nft.In(itself, nft.Saddr(f), nft.Daddr(f)), nft.Masquerade())}},
	} {
		tx.AddChain(c.chain)
		tx.FlushChain(c.chain)
		for _, r := range c.rules {
			tx.AddRule(c.chain, r)
		}
	}
}
