package nft

import (
	"errors"
	"fmt"
	"slices"
)

// Compare gives what a table has not as a transaction makes it that writes it whole:
// chains, rules as far as RuleInfo tells, and the keys of sets' elements. Chains and
// sets that the transaction does not name are not looked at.
func (c *Conn) Compare(t Table, whole *Tx) ([]string, error) {
	tables, err := c.Tables()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(tables, t) {
		return []string{"is missing"}, nil
	}
	chains, err1 := c.Chains(t)
	rules, err2 := c.Rules(t)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	want := wantedOf(whole)
	var diffs []string
	for _, ch := range want.chains {
		have := slices.DeleteFunc(slices.Clone(rules), func(r RuleInfo) bool { return r.Chain != ch.Name })
		switch {
		case !slices.Contains(chains, ch):
			diffs = append(diffs, fmt.Sprintf("chain %s is missing, or another", ch.Name))
		case !slices.EqualFunc(have, want.rules[ch.Name], RuleInfo.same):
			diffs = append(diffs, fmt.Sprintf("chain %s has other rules", ch.Name))
		}
	}
	for _, s := range want.sets {
		es, err := c.Elements(s)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
		if lacks, more := compareKeys(es, want.keys[s.Name]); lacks+more > 0 {
			diffs = append(diffs, fmt.Sprintf("set %s lacks %d elements, and has %d that it should not have", s.Name, lacks, more))
		}
	}
	return diffs, nil
}

// wanted is what a transaction makes, by the names of chains and sets.
type wanted struct {
	chains []Chain
	rules  map[string][]RuleInfo
	sets   []Set
	keys   map[string]map[string]bool
}

func wantedOf(tx *Tx) wanted {
	w := wanted{rules: map[string][]RuleInfo{}, keys: map[string]map[string]bool{}}
	for _, o := range tx.ops {
		switch {
		case o.rule != nil:
			w.rules[o.chain.Name] = append(w.rules[o.chain.Name], o.rule.Info(o.chain.Name))
		case o.chain != nil && o.verb == add:
			w.chains = append(w.chains, *o.chain)
		case o.elems != nil:
			for _, e := range o.elems {
				w.keys[o.set.Name][string(e.Key)] = true
			}
		case o.set != nil && o.verb == add:
			w.sets, w.keys[o.set.Name] = append(w.sets, *o.set), map[string]bool{}
		}
	}
	return w
}

func (r RuleInfo) same(o RuleInfo) bool {
	return r.Chain == o.Chain && r.Comment == o.Comment && slices.Equal(r.Exprs, o.Exprs)
}

func compareKeys(have []Element, want map[string]bool) (lacks, more int) {
	there := 0
	for _, e := range have {
		if want[string(e.Key)] {
			there++
		}
	}
	return len(want) - there, len(have) - there
}
