package observe

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	googlenft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables/apply"
)

// Feature is something that a kernel can do or not.
type Feature struct {
	Name       string `json:"name"`
	Error      string `json:"error,omitempty"` // empty: it can
	Expression bool   `json:"expression,omitempty"`
	Need       string `json:"need,omitempty"` // the kernel's configuration option
}

// Features tries what Podlane needs, by doing it. It must be run in a network
// namespace that is thrown away.
func Features() []Feature {
	var list []Feature
	try := func(name string, f func() error) {
		feature := Feature{Name: name}
		if err := f(); err != nil {
			feature.Error = err.Error()
		}
		list = append(list, feature)
	}
	try("nftables", func() error { _, err := googlenft.New(); return errors.Join(err, tryRule(nil)) })
	try("service rules", tryServices)
	try("veth", func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: named("pltry0"), PeerName: "pltry1"})
	})
	try("vxlan", func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: named("pltry2"), VxlanId: 1, Port: 8472, SrcAddr: []byte{192, 0, 2, 1}})
	})
	try("conntrack", tryConntrack)
	try("ipv6", func() error { _, err := os.Stat("/proc/sys/net/ipv6"); return err })
	try("forwarding", func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	try("nftrace", func() error {
		t, err := StartTrace(cluster.TCP, 1, false)
		if err != nil {
			return err
		}
		return t.Stop()
	})
	return append(list, expressions()...)
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// tryServices loads the real service rules, with a Service of each family.
func tryServices() error {
	conn, err := nft.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	b := cluster.NewBuilder()
	for i, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		a := netip.MustParseAddr(addr)
		k := cluster.Key{Namespace: "preflight", Name: fmt.Sprint("try", i)}
		b.SetService(&cluster.Service{Key: k, Type: cluster.ClusterIP, ClusterIPs: []netip.Addr{a}, Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
		b.SetSlice(&cluster.EndpointSlice{Key: k, Service: k.Name, IPv6: a.Is6(), Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}},
			Endpoints: []cluster.Endpoint{{Address: a.Next(), Ready: true, Serving: true}, {Address: a.Next().Next(), Ready: true, Serving: true}}})
	}
	return apply.New(conn, nft.IPv4, nft.IPv6).Apply(proxy.CompileAll(b.Publish(), proxy.Config{Node: "preflight"}), nil)
}

func tryConntrack() error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Each(unix.IPPROTO_UDP, false, func(conntrack.Flow) {})
}

// expressions tries the parts of rules one by one, so that the one that is missing
// has a name.
func expressions() []Feature {
	parts := []struct {
		name, need string
		exprs      []expr.Any
	}{
		{"counter", "CONFIG_NF_TABLES", []expr.Any{&expr.Counter{}}},
		{"ct status", "CONFIG_NFT_CT", []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}}},
		{"numgen random", "CONFIG_NFT_NUMGEN", []expr.Any{&expr.Numgen{Register: 1, Modulus: 2, Type: unix.NFT_NG_RANDOM}}},
		{"masquerade", "CONFIG_NFT_MASQ", []expr.Any{&expr.Masq{}}},
		{"reject", "CONFIG_NFT_REJECT", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}},
		{"fib", "CONFIG_NFT_FIB_IPV4, NFT_FIB_IPV6", []expr.Any{&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}}},
	}
	var list []Feature
	for _, p := range parts {
		f := Feature{Name: "nft " + p.name, Expression: true, Need: p.need}
		if err := tryRule(p.exprs); err != nil {
			f.Error = err.Error()
		}
		list = append(list, f)
	}
	return list
}

// tryRule adds a rule to a table of its own and deletes it.
func tryRule(exprs []expr.Any) error {
	conn, err := googlenft.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&googlenft.Table{Family: googlenft.TableFamilyIPv4, Name: "podlane-preflight"})
	chainType, hook, priority := googlenft.ChainTypeFilter, googlenft.ChainHookPrerouting, googlenft.ChainPriorityFilter
	for _, e := range exprs {
		switch e.(type) {
		case *expr.Masq:
			chainType, hook, priority = googlenft.ChainTypeNAT, googlenft.ChainHookPostrouting, googlenft.ChainPriorityNATSource
		case *expr.Reject:
			hook = googlenft.ChainHookInput
		}
	}
	chain := conn.AddChain(&googlenft.Chain{Name: "try", Table: table, Type: chainType, Hooknum: hook, Priority: priority})
	if exprs != nil {
		conn.AddRule(&googlenft.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
	if err := conn.Flush(); err != nil {
		return err
	}
	conn.DelTable(table)
	return conn.Flush()
}
