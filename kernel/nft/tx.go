package nft

import "fmt"

// maxElements is how many bytes of encoded elements go into one message. The
// length of the attribute that holds them has 16 bits: what is longer would lose
// elements silently.
const maxElements = 48 << 10

// Tx is a transaction: operations that the kernel does in order, all or none. Its
// methods are named by nft's verbs. A mistake in what they are given is kept and
// reported by Conn.Commit; the methods themselves never fail.
type Tx struct {
	ops  []txOp
	sets int
	size int
	wait bool // for packets under way
	err  error
}

// verb is what an operation does.
type verb uint8

const (
	add    verb = iota // fine where it is there already
	create             // an error where it is there already
	del
	flush
)

var verbNames = [...]string{"add", "create", "delete", "flush"}

// txOp is one operation. Exactly one of the objects is given, with the exception
// that elems come with their set, and rule with its chain.
type txOp struct {
	verb  verb
	table *Table
	owned bool // the table goes with the connection
	chain *Chain
	set   *Set
	rule  *Rule
	elems []Element
	setID int
}

func (tx *Tx) push(o txOp) { tx.ops = append(tx.ops, o); tx.size += o.size() }

func (tx *Tx) fail(format string, args ...any) {
	if tx.err == nil {
		tx.err = fmt.Errorf(format, args...)
	}
}

// AfterPackets has the transaction wait until every packet that was under way when
// Commit was called has left the rules. A packet keeps the list of base chains that
// it found when it came to a hook: where these were replaced by a transaction and
// their table deleted by the next, before it went through them, it met none.
func (tx *Tx) AfterPackets() { tx.wait = true }

// Empty says that there is nothing to do.
func (tx *Tx) Empty() bool { return len(tx.ops) == 0 }

// Size is the length of the transaction in bytes as sent, rounded up.
func (tx *Tx) Size() int { return tx.size }

// Err gives the first mistake in what the transaction was built of.
func (tx *Tx) Err() error { return tx.err }

// AddTable adds a table.
func (tx *Tx) AddTable(t Table) { tx.push(txOp{verb: add, table: &t}) }

// AddOwnedTable adds a table that the kernel deletes when the connection ends, by whatever death of its process. Nobody
// else can change it. Kernels before 5.12 refuse it, with EINVAL or EOPNOTSUPP.
func (tx *Tx) AddOwnedTable(t Table) { tx.push(txOp{verb: add, table: &t, owned: true}) }

// DeleteTable deletes a table with all it holds. A table that may be missing is
// added first.
func (tx *Tx) DeleteTable(t Table) { tx.push(txOp{verb: del, table: &t}) }

// AddChain adds a chain.
func (tx *Tx) AddChain(c Chain) { tx.push(txOp{verb: add, chain: &c}) }

// CreateChain adds a chain that must not be there yet.
func (tx *Tx) CreateChain(c Chain) { tx.push(txOp{verb: create, chain: &c}) }

// FlushChain deletes the rules of a chain.
func (tx *Tx) FlushChain(c Chain) { tx.push(txOp{verb: flush, chain: &c}) }

// DeleteChain deletes a chain, which nothing may go to, and its rules.
func (tx *Tx) DeleteChain(c Chain) { tx.push(txOp{verb: del, chain: &c}) }

// AddRule appends a rule to a chain.
func (tx *Tx) AddRule(c Chain, r Rule) {
	if len(r.Comment) > MaxComment {
		tx.fail("nft rule of %s: comment of %d bytes, at most %d", c, len(r.Comment), MaxComment)
	}
	tx.push(txOp{verb: add, chain: &c, rule: &r})
}

// AddSet adds a set or map.
func (tx *Tx) AddSet(s Set) {
	tx.sets++
	tx.push(txOp{verb: add, set: &s, setID: tx.sets})
}

// DeleteSet deletes a set, which no rule may use, and its elements.
func (tx *Tx) DeleteSet(s Set) { tx.push(txOp{verb: del, set: &s}) }

// AddElements adds elements; one that is there already with the same data stays
// as it is, comment and counter included.
func (tx *Tx) AddElements(s Set, es ...Element) { tx.elements(add, s, es) }

// CreateElements adds elements that must not be there yet.
func (tx *Tx) CreateElements(s Set, es ...Element) { tx.elements(create, s, es) }

// DeleteElements deletes elements, of which only the keys matter, and which must
// be there.
func (tx *Tx) DeleteElements(s Set, es ...Element) { tx.elements(del, s, es) }

// FlushSet deletes all elements of a set.
func (tx *Tx) FlushSet(s Set) { tx.push(txOp{verb: flush, set: &s}) }

// elements appends to the operation before where that is of the same kind.
func (tx *Tx) elements(v verb, s Set, es []Element) {
	if len(es) == 0 {
		return
	}
	for i := range es {
		tx.check(v, s, &es[i])
	}
	if n := len(tx.ops); n > 0 {
		last := &tx.ops[n-1]
		if last.verb == v && last.elems != nil && last.set.Name == s.Name && last.set.Table == s.Table {
			last.elems = append(last.elems, es...)
			tx.size += sizeOf(v, es)
			return
		}
	}
	tx.push(txOp{verb: v, set: &s, elems: append([]Element(nil), es...)})
}

// EachElement gives every element that the transaction deletes or creates, in
// order. f may give those to be created a Counter to begin with.
func (tx *Tx) EachElement(f func(s Set, deleted bool, e *Element)) {
	for i := range tx.ops {
		o := &tx.ops[i]
		for j := range o.elems {
			f(*o.set, o.verb == del, &o.elems[j])
		}
	}
}

func (tx *Tx) check(v verb, s Set, e *Element) {
	if len(e.Key) != width(s.Key) {
		tx.fail("nft element of %s: key of %d bytes, want %d", s, len(e.Key), width(s.Key))
	}
	if v != del && len(e.Data) != width(s.Data) {
		tx.fail("nft element of %s: data of %d bytes, want %d", s, len(e.Data), width(s.Data))
	}
	if len(e.Comment) > MaxComment {
		tx.fail("nft element of %s: comment of %d bytes, at most %d", s, len(e.Comment), MaxComment)
	}
}

// width is the length of a concatenation of types in bytes.
func width(ts []Type) int {
	if len(ts) == 1 {
		return ts[0].size()
	}
	n := 0
	for _, t := range ts {
		n += align(t.size())
	}
	return n
}

func (o *txOp) size() int {
	if o.elems != nil {
		return messageHead + sizeOf(o.verb, o.elems)
	}
	return 1024 // more than any other object that we make takes
}

// messageHead is room for the headers of a message, the table and the set name.
const messageHead = 256

func sizeOf(v verb, es []Element) int {
	n := len(es) // a byte each is more than their share of the messages' heads
	for i := range es {
		n += elementSize(v, &es[i])
	}
	return n
}

// elementSize is how many bytes an element takes in a message, at most.
func elementSize(v verb, e *Element) int {
	n := 4 + 8 + align(len(e.Key))
	if v == del {
		return n
	}
	if len(e.Data) > 0 {
		n += 8 + align(len(e.Data))
	} else {
		n += 20 + 4 + align(len(e.Verdict.Chain)+1)
	}
	if e.Comment != "" {
		n += 4 + align(len(e.Comment)+3)
	}
	if e.Counter != nil {
		n += 48
	}
	return n
}
