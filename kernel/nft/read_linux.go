package nft

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotFound is a table, set or element that is not there.
var ErrNotFound = errors.New("not found")

// errInterrupted is a dump during which the ruleset changed.
var errInterrupted = errors.New("the ruleset changed during the dump")

// request sends one request and gives every message of the answer to f, until
// the kernel says that it was the last.
func (c *Conn) request(typ, flags uint16, f Family, body attrs, each func(m message)) error {
	if err := c.nl.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return err
	}
	b := &batch{seq: c.seq}
	c.seq++
	at := b.open(subsystem<<8|typ, flags, uint8(f))
	b.buf = append(b.buf, body...)
	b.close(at)
	if err := c.send(b.buf); err != nil {
		return err
	}
	return c.answers(b.seq, flags&flagDump != 0, each)
}

func (c *Conn) answers(seq uint32, dump bool, each func(m message)) error {
	var result error
	for done := false; !done; {
		datagram, err := c.receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		messages(datagram, func(m message) bool {
			if m.seq != seq {
				return true
			}
			const interrupted = 0x10
			if m.flags&interrupted != 0 {
				result = errInterrupted
			}
			switch m.typ {
			case unix.NLMSG_DONE:
				done = true
			case unix.NLMSG_ERROR:
				done = true
				if a := m.answer(); a.errno != 0 {
					result = a.errno
				}
			default:
				each(m)
				done = done || !dump
			}
			return true
		})
	}
	return result
}

// dump is request for lists; it starts again where the ruleset changed meanwhile,
// so begin must forget what each has collected.
func (c *Conn) dump(typ uint16, f Family, body attrs, begin func(), each func(m message)) error {
	var err error
	for try := range 10 {
		begin()
		err = c.request(typ, flagDump, f, body, each)
		if !errors.Is(err, errInterrupted) && !passing(err) {
			return notFound(err)
		}
		time.Sleep(time.Millisecond << try)
	}
	return err
}

func notFound(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) && errno == unix.ENOENT {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// Tables lists the tables that carry our Prefix.
func (c *Conn) Tables() ([]Table, error) {
	var ts []Table
	err := c.dump(msgGetTable, 0, nil, func() { ts = nil }, func(m message) {
		each(m.attributes(), func(typ uint16, v []byte) {
			if typ == tableName && strings.HasPrefix(cstr(v), Prefix) {
				ts = append(ts, Table{m.family(), cstr(v)})
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("nft list tables: %w", err)
	}
	return ts, nil
}

// Chains lists the chains of a table in the order they were made.
func (c *Conn) Chains(t Table) ([]Chain, error) {
	var cs []Chain
	err := c.dump(msgGetChain, t.Family, nil, func() { cs = nil }, func(m message) {
		if ch := parseChain(m); ch.Table == t {
			cs = append(cs, ch)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nft list chains of %s: %w", t, err)
	}
	return cs, nil
}

func parseChain(m message) Chain {
	ch := Chain{Table: Table{Family: m.family()}}
	each(m.attributes(), func(typ uint16, v []byte) {
		switch typ {
		case chainTable:
			ch.Table.Name = cstr(v)
		case chainName:
			ch.Name = cstr(v)
		case chainType:
			ch.Type = cstr(v)
		case chainHook:
			each(v, func(typ uint16, v []byte) {
				switch typ {
				case hookNum:
					ch.Hook = Hook(be32(v) + 1)
				case hookPriority:
					ch.Priority = int32(be32(v))
				}
			})
		}
	})
	return ch
}

// Rules lists the rules of a table, chain by chain in their order.
func (c *Conn) Rules(t Table) ([]RuleInfo, error) {
	var rs []RuleInfo
	body := attrs(nil).str(ruleTable, t.Name)
	err := c.dump(msgGetRule, t.Family, body, func() { rs = nil }, func(m message) {
		if r, table := parseRule(m); table == t.Name {
			rs = append(rs, r)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("nft list rules of %s: %w", t, err)
	}
	return rs, nil
}

func parseRule(m message) (r RuleInfo, table string) {
	each(m.attributes(), func(typ uint16, v []byte) {
		switch typ {
		case ruleTable:
			table = cstr(v)
		case ruleChain:
			r.Chain = cstr(v)
		case ruleUserdata:
			r.Comment = parseComment(v)
		case ruleExpressions:
			each(v, func(_ uint16, v []byte) { r.addExpr(v) })
		}
	})
	return r, table
}

func (r *RuleInfo) addExpr(b []byte) {
	name := ""
	each(b, func(typ uint16, v []byte) {
		if typ == exprName {
			name = cstr(v)
		}
	})
	r.Exprs = append(r.Exprs, name)
	if name == "counter" {
		r.Counter = *parseCounter(b)
	}
}

// Elements reads all elements of a set, in no particular order. The kernel walks
// the set from its start for every 32 KB of the answer: that is quadratic, so it
// is for sets of at most some ten thousand elements.
//
// While the kernel moves a set that has just grown to a bigger hash table, a walk
// meets some elements twice and may miss others, and nothing in the answer says
// so; where an element came twice, all are read again.
func (c *Conn) Elements(s Set) ([]Element, error) {
	var es []Element
	var err error
	for try := range 10 {
		err = c.dump(msgGetSetElem, s.Table.Family, s.encodeName(nil), func() { es = nil }, func(m message) {
			es = appendElements(es, m)
		})
		if err != nil || !repeated(es) {
			break
		}
		err = errInterrupted
		time.Sleep(time.Millisecond << try)
	}
	if err != nil {
		return nil, fmt.Errorf("nft list elements of %s: %w", s, err)
	}
	return es, nil
}

func repeated(es []Element) bool {
	seen := make(map[string]struct{}, len(es))
	for i := range es {
		seen[string(es[i].Key)] = struct{}{}
	}
	return len(seen) < len(es)
}

// GetElement reads one element by its key.
func (c *Conn) GetElement(s Set, key []byte) (Element, error) {
	body, at := s.encodeName(nil).begin(elemListElements)
	body = (&Element{Key: key}).encode(body, &s, true).end(at)
	var es []Element
	err := c.request(msgGetSetElem, 0, s.Table.Family, body, func(m message) { es = appendElements(es, m) })
	if err == nil && len(es) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return Element{}, fmt.Errorf("nft get element %s { %s }: %w", s, concatText(s.Key, key), notFound(err))
	}
	return es[0], nil
}

func appendElements(es []Element, m message) []Element {
	each(m.attributes(), func(typ uint16, v []byte) {
		if typ != elemListElements {
			return
		}
		each(v, func(_ uint16, v []byte) { es = append(es, parseElement(v)) })
	})
	return es
}

func parseElement(b []byte) Element {
	var e Element
	each(b, func(typ uint16, v []byte) {
		switch typ {
		case elemKey:
			e.Key, _ = parseData(v)
		case elemData:
			e.Data, e.Verdict = parseData(v)
		case elemUserdata:
			e.Comment = parseComment(v)
		case elemExpr:
			e.Counter = parseCounter(v)
		}
	})
	return e
}

func parseData(b []byte) (value []byte, verdict Verdict) {
	each(b, func(typ uint16, v []byte) {
		switch typ {
		case dataValue:
			value = append([]byte(nil), v...)
		case dataVerdict:
			each(v, func(typ uint16, v []byte) {
				switch typ {
				case verdictCode:
					verdict.Code = VerdictCode(be32(v))
				case verdictChain:
					verdict.Chain = cstr(v)
				}
			})
		}
	})
	return value, verdict
}

func parseCounter(b []byte) *Counter {
	var c *Counter
	each(b, func(typ uint16, v []byte) {
		if typ != exprData {
			return
		}
		c = &Counter{}
		each(v, func(typ uint16, v []byte) {
			switch typ {
			case counterBytes:
				c.Bytes = be64(v)
			case counterPackets:
				c.Packets = be64(v)
			}
		})
	})
	return c
}

// Generation gives the number that every transaction of the namespace, by
// anyone, raises.
func (c *Conn) Generation() (uint32, error) {
	var id uint32
	err := c.request(msgGetGen, 0, 0, nil, func(m message) {
		each(m.attributes(), func(typ uint16, v []byte) {
			if typ == genID {
				id = be32(v)
			}
		})
	})
	if err != nil {
		return 0, fmt.Errorf("nft generation: %w", err)
	}
	return id, nil
}
