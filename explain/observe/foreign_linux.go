package observe

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podlane/podlane/kernel/nft"
)

// Foreign is a place in somebody else's packet filter that can end a packet.
type Foreign struct {
	Table  string `json:"table"` // "ip filter"
	Chain  string `json:"chain"`
	Hook   string `json:"hook"`
	Handle uint64 `json:"handle,omitempty"` // of the rule; 0 is the chain's policy
	What   string `json:"what"`
	// Ports are the destination ports that the rule compares with, where it does.
	Ports []uint16 `json:"ports,omitempty"`
}

func (f Foreign) String() string {
	if f.Handle == 0 {
		return fmt.Sprintf("nft table %s chain %s (hook %s): %s", f.Table, f.Chain, f.Hook, f.What)
	}
	return fmt.Sprintf("nft table %s chain %s (hook %s) rule handle %d: %s", f.Table, f.Chain, f.Hook, f.Handle, f.What)
}

var hookNames = map[nftables.ChainHook]string{0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}

var families = map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}

// ForeignDrops lists the policies and rules of tables that are not ours which can
// drop or reject a packet that passes the node. A verdict "accept" of ours does not
// overrule them: every base chain is asked.
func ForeignDrops() ([]Foreign, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("list foreign chains: %w", err)
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list foreign chains: %w", err)
	}
	var list []Foreign
	for _, c := range chains {
		family, known := families[c.Table.Family]
		if !known || strings.HasPrefix(c.Table.Name, nft.Prefix) {
			continue
		}
		f := Foreign{Table: family + " " + c.Table.Name, Chain: c.Name, Hook: "none: jumped to"}
		if c.Hooknum != nil {
			f.Hook = hookNames[*c.Hooknum]
			if c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
				p := f
				p.What = "policy drop"
				list = append(list, p)
			}
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			continue // gone meanwhile
		}
		list = append(list, dropsIn(f, rules)...)
	}
	return list, nil
}

func dropsIn(f Foreign, rules []*nftables.Rule) []Foreign {
	var list []Foreign
	for _, r := range rules {
		what := ""
		var ports []uint16
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Verdict:
				if e.Kind == expr.VerdictDrop {
					what = "drop"
				}
			case *expr.Reject:
				what = "reject"
			case *expr.Cmp:
				if len(e.Data) == 2 {
					ports = append(ports, uint16(e.Data[0])<<8|uint16(e.Data[1]))
				}
			}
		}
		if what != "" {
			d := f
			d.Handle, d.What, d.Ports = r.Handle, what, ports
			list = append(list, d)
		}
	}
	return list
}
