package observe

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/podlane/podlane/kernel/nft"
)

// Foreign is a place in somebody else's packet filter that can end a packet.
type Foreign struct {
	Table string `json:"table"` // "ip filter"
	Chain string `json:"chain"`
	// Hooks are those whose packets can come to the chain: one of a base chain; those
	// of the chains that jump here. Where none is seen to, it is not known.
	Hooks []string `json:"hooks,omitempty"`
	// Jumped says that it is no base chain.
	Jumped bool   `json:"jumped,omitempty"`
	Handle uint64 `json:"handle,omitempty"` // of the rule; 0 is the chain's policy
	What   string `json:"what"`
	// Ports are the destination ports that the rule compares with, where it does.
	Ports []uint16 `json:"ports,omitempty"`
}

func (f Foreign) String() string {
	where := "hook " + strings.Join(f.Hooks, ", ")
	if len(f.Hooks) == 0 {
		where = "no hook seen"
	}
	if f.Jumped {
		where += ", jumped to"
	}
	if f.Handle == 0 {
		return fmt.Sprintf("nft table %s chain %s (%s): %s", f.Table, f.Chain, where, f.What)
	}
	return fmt.Sprintf("nft table %s chain %s (%s) rule handle %d: %s", f.Table, f.Chain, where, f.Handle, f.What)
}

// Meets says whether packets of a hook can come there.
func (f Foreign) Meets(hook string) bool {
	return len(f.Hooks) == 0 || slices.Contains(f.Hooks, hook)
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
	jumps := jumps{}
	for _, c := range chains {
		family, known := families[c.Table.Family]
		if !known || strings.HasPrefix(c.Table.Name, nft.Prefix) {
			continue
		}
		f := Foreign{Table: family + " " + c.Table.Name, Chain: c.Name, Jumped: c.Hooknum == nil}
		if c.Hooknum != nil {
			f.Hooks = []string{hookNames[*c.Hooknum]}
			jumps.from(f, f.Hooks[0])
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
		jumps.note(f, rules)
		list = append(list, dropsIn(f, rules)...)
	}
	for i := range list {
		if list[i].Jumped {
			list[i].Hooks = jumps.hooks(list[i])
		}
	}
	return list, nil
}

// jumps are, by table and chain, the chains and hooks that lead there.
type jumps map[[2]string][]string

func (j jumps) from(f Foreign, what string) {
	j[[2]string{f.Table, f.Chain}] = append(j[[2]string{f.Table, f.Chain}], what)
}

// note notes the jumps of a chain's rules. Those by way of a map are not seen.
func (j jumps) note(f Foreign, rules []*nftables.Rule) {
	for _, r := range rules {
		for _, e := range r.Exprs {
			if v, is := e.(*expr.Verdict); is && v.Chain != "" {
				to := f
				to.Chain = v.Chain
				j.from(to, "chain "+f.Chain)
			}
		}
	}
}

// hooks gives those that lead to a chain, by whatever way.
func (j jumps) hooks(f Foreign) []string {
	var found []string
	seen := map[string]bool{}
	var follow func(chain string)
	follow = func(chain string) {
		if seen[chain] {
			return
		}
		seen[chain] = true
		for _, what := range j[[2]string{f.Table, chain}] {
			if from, is := strings.CutPrefix(what, "chain "); is {
				follow(from)
			} else if !slices.Contains(found, what) {
				found = append(found, what)
			}
		}
	}
	follow(f.Chain)
	slices.Sort(found)
	return found
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
