// Package apply brings the tables of proxy/nftables to the kernel: it adopts what
// is there at the start, commits what changed, and after an error or a change by
// others finds the way back. It decides nothing about the tables' contents.
//
// The agent's loop is:
//
//	conn, err := nft.Dial(0)                          // in the node's namespace
//	monitor, err := nft.NewMonitor(0, conn.PortID())  // its Run in a goroutine sends events
//	a := apply.New(conn, nft.IPv4, nft.IPv6)
//	for {
//		select {
//		case <-newer:         err = a.Apply(table, pods)
//		case e := <-events:   if a.Changed(e) { err = a.Apply(table, pods) }
//		case <-quietForAWhile: err = a.Tidy()
//		case <-everyFewMinutes: if a.Audit(table, pods); a.Doubtful() { err = a.Apply(table, pods) }
//		}
//	} // after an err, Apply again, a little later
//
// What becomes of the table:
//
//	           not known ──read──▶ fits: adopted, Diff writes what differs
//	            ▲      │
//	an error of │      └─▶ does not fit, or changed by others: Load builds it
//	  a Commit ─┘          beside under the other name, then swaps
package apply

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables"
)

// Applier owns the service tables of one network namespace. It is not safe for
// use by several goroutines.
type Applier struct {
	families []*family
	monitor  *nft.Monitor
	missed   bool
}

// New makes an Applier for the families (both, mostly) over a connection, which
// stays the caller's.
func New(conn *nft.Conn, families ...nft.Family) *Applier {
	a := &Applier{}
	commit := func(tx *nft.Tx) error {
		keepCounters(conn, tx)
		return conn.Commit(tx)
	}
	for _, f := range families {
		a.families = append(a.families, &family{conn: conn, commit: commit, family: f, away: a.away})
	}
	return a
}

// Listens tells of the monitor that brings Changed its events: it does not listen
// while a whole table is built.
func (a *Applier) Listens(m *nft.Monitor) { a.monitor = m }

// Missed says, once, that the last Apply may have kept the monitor from an event:
// Changed and whoever else heeds it should be told of one that is Lost.
func (a *Applier) Missed() bool {
	missed := a.missed
	a.missed = false
	return missed
}

// Built says, once, that a table was built anew since the last call: there may have
// been none, so that connections began that nothing translates.
func (a *Applier) Built() (built bool) {
	for _, f := range a.families {
		built, f.built = built || f.built, false
	}
	return built
}

// Found gives, once, the frontends that were in the kernel when it was read: those
// that are no longer wanted, too. New is not set.
func (a *Applier) Found() (all []Count) {
	for _, f := range a.families {
		all, f.found = append(all, f.found...), nil
	}
	return all
}

// Apply makes the kernel have what the Table and the node's pods ask for. The
// first call, and the next one after an error, reads what is there and writes what
// differs; others write what changed. With an error the other family is done
// nevertheless, and what was right in the kernel goes on as it was.
func (a *Applier) Apply(t *proxy.Table, pods []netip.Addr) error {
	var errs []error
	for _, f := range a.families {
		if err := f.apply(t, pods); err != nil {
			errs = append(errs, fmt.Errorf("service proxy, %s: %w", f.family, err))
		}
	}
	return errors.Join(errs...)
}

// Has says, by proxy.Family, for which families the last Apply had no error.
func (a *Applier) Has() (has [2]bool) {
	for _, f := range a.families {
		has[proxy.Family(f.family == nft.IPv6)] = f.applied != nil
	}
	return has
}

// Tidy removes chains that no Service uses any more. Call it when nothing has
// changed for a second or more.
func (a *Applier) Tidy() error {
	var errs []error
	for _, f := range a.families {
		if f.applied == nil {
			continue
		}
		next, err := nftables.Tidy(f.applied, f.commit)
		if err != nil {
			next = nil
			errs = append(errs, fmt.Errorf("service proxy, %s: tidy: %w", f.family, err))
		}
		f.applied = next
	}
	return errors.Join(errs...)
}

// Problems are the frontends that several Services want.
func (a *Applier) Problems() []cluster.Problem {
	var ps []cluster.Problem
	for _, f := range a.families {
		if f.applied != nil {
			ps = append(ps, f.applied.Problems()...)
		}
	}
	return ps
}

// Changed is told what nft.Monitor says. Where someone else changed a table in
// force, the next Apply builds it anew beside and swaps; where notices were lost,
// it reads back what Adopt checks. It gives whether there is reason to Apply.
func (a *Applier) Changed(e nft.Event) bool {
	any := false
	for _, f := range a.families {
		switch {
		case e.Lost:
			f.applied, any = nil, true
		case f.applied != nil && f.applied.Ruleset().Table == e.Table:
			f.applied, f.rebuild, any = nil, true, true
		}
	}
	return any
}

// Audit reads whether the tables in force have the rules, the Services and the
// pods they are believed to have; those that have not are then Doubtful. It costs
// what a start costs, some 0.3 s for 30,000 Services, and does not read the
// endpoints.
func (a *Applier) Audit(t *proxy.Table, pods []netip.Addr) error {
	for _, f := range a.families {
		if f.applied == nil {
			continue
		}
		clean, err := f.clean(t, pods)
		if err != nil {
			return fmt.Errorf("service proxy, %s: audit: %w", f.family, err)
		}
		if !clean {
			f.applied, f.rebuild = nil, true
		}
	}
	return nil
}

// Doubtful says that the next Apply has to read the kernel, or to build a table
// anew, even where the Table did not change: at first, after an error, and after
// Changed or Audit found something.
func (a *Applier) Doubtful() bool {
	return slices.ContainsFunc(a.families, func(f *family) bool { return f.applied == nil })
}

// clean says that what a start would adopt needs no write.
func (f *family) clean(t *proxy.Table, pods []netip.Addr) (bool, error) {
	a, err := f.adopt(f.applied.Ruleset().Table)
	f.found = nil
	if a == nil || err != nil {
		return false, err
	}
	clean := true
	_, err = nftables.Diff(a, t, pods, func(*nft.Tx) error { clean = false; return nil })
	if errors.Is(err, nftables.ErrDoubt) {
		return false, nil
	}
	return clean, err
}

// Remove deletes our tables: for an uninstall, never for an end of the agent.
func (a *Applier) Remove() error {
	var errs []error
	for _, f := range a.families {
		f.applied = nil
		ours, err := f.tables()
		tx := &nft.Tx{}
		for _, t := range ours {
			tx.DeleteTable(t)
		}
		errs = append(errs, err, f.commit(tx))
	}
	return errors.Join(errs...)
}

// family is the table of one address family.
type family struct {
	conn    *nft.Conn
	commit  nftables.Emit // conn.Commit, with keepCounters
	family  nft.Family
	applied *nftables.Applied // nil: not known
	rebuild bool              // what is there is not to be adopted
	away    func(func() error) error
	found   []Count
	// building is that a build was begun, and built that what it was for is in the kernel.
	building, built bool
}

func (f *family) apply(t *proxy.Table, pods []netip.Addr) error {
	next, err := f.bring(t, pods)
	if err != nil && !f.rebuild && wrongState(err) {
		f.applied, f.rebuild = nil, true
		next, err = f.bring(t, pods)
	}
	if err != nil {
		f.applied = nil
		return err
	}
	f.applied, f.rebuild = next, false
	f.built, f.building = f.built || f.building, false
	return nil
}

// wrongState says that the table cannot be brought to what it should be: it has
// not what it was believed to have, such as the first slots of a frontend at which
// the former agent was killed, or the change is too big for one transaction.
func wrongState(err error) bool {
	for _, e := range []error{nft.ErrTooBig, nftables.ErrDoubt, syscall.EEXIST, syscall.ENOENT} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (f *family) bring(t *proxy.Table, pods []netip.Addr) (*nftables.Applied, error) {
	if f.applied != nil {
		return nftables.Diff(f.applied, t, pods, f.commit)
	}
	ours, err := f.tables()
	if err != nil {
		return nil, err
	}
	forced, err := f.inForce(ours)
	if err != nil {
		return nil, err
	}
	for _, table := range forced {
		if f.rebuild {
			break
		}
		a, err := f.adopt(table)
		if err != nil {
			return nil, err
		}
		if a != nil {
			return f.takeOver(a, ours, t, pods)
		}
	}
	return f.load(ours, forced, t, pods)
}

// inForce gives the tables that have base chains. More than one has them where an
// agent was killed between putting one in force and deleting the other.
func (f *family) inForce(tables []nft.Table) ([]nft.Table, error) {
	var forced []nft.Table
	for _, table := range tables {
		chains, err := f.conn.Chains(table)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(chains, func(c nft.Chain) bool { return c.Hook != 0 }) {
			forced = append(forced, table)
		}
	}
	return forced, nil
}

// forced gives the tables of ours that are in force.
func (f *family) forced() ([]nft.Table, error) {
	ours, err := f.tables()
	if err != nil {
		return nil, err
	}
	return f.inForce(ours)
}

// takeOver goes on with an adopted table, and removes the others of ours.
func (f *family) takeOver(a *nftables.Applied, ours []nft.Table, t *proxy.Table, pods []netip.Addr) (*nftables.Applied, error) {
	tx := &nft.Tx{}
	for _, table := range ours {
		if table != a.Ruleset().Table {
			tx.DeleteTable(table)
		}
	}
	if err := f.commit(tx); err != nil {
		return nil, err
	}
	return nftables.Diff(a, t, pods, f.commit)
}

// load builds a table of a name that is not in force and swaps.
func (f *family) load(ours, forced []nft.Table, t *proxy.Table, pods []netip.Addr) (*nftables.Applied, error) {
	r := nftables.NewRuleset(f.family, nftables.Names[0])
	if slices.Contains(forced, r.Table) {
		r = nftables.NewRuleset(f.family, nftables.Names[1])
	}
	replaced := slices.DeleteFunc(slices.Clone(ours), func(o nft.Table) bool { return o == r.Table })
	f.building = true
	var a *nftables.Applied
	err := f.away(func() error {
		return pipelined(f.commit, func(emit nftables.Emit) (err error) {
			a, err = nftables.Load(r, t, pods, replaced, emit)
			return err
		})
	})
	return a, err
}

// away runs f, without the monitor where there is one.
func (a *Applier) away(f func() error) error {
	if a.monitor == nil {
		return f()
	}
	missed, err := a.monitor.Away(a.families[0].conn, f)
	a.missed = a.missed || missed
	return err
}

// tables lists the service tables of the family, of whatever layout:
// podlane-NUMBER and podlane-NUMBER-b.
func (f *family) tables() ([]nft.Table, error) {
	all, err := f.conn.Tables()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(t nft.Table) bool {
		layout := strings.TrimSuffix(strings.TrimPrefix(t.Name, nft.Prefix), "-b")
		return t.Family != f.family || layout == "" || strings.Trim(layout, "0123456789") != ""
	}), nil
}

// adopt reads a table; it gives nil where it does not fit.
func (f *family) adopt(table nft.Table) (*nftables.Applied, error) {
	if !slices.Contains(nftables.Names[:], table.Name) {
		return nil, nil // of another layout
	}
	r := nftables.NewRuleset(f.family, table.Name)
	s := nftables.State{}
	var err error
	if s.Chains, err = f.conn.Chains(table); err != nil {
		return nil, err
	}
	if s.Rules, err = f.conn.Rules(table); err != nil {
		return nil, err
	}
	s.Elements = map[string][]nft.Element{}
	for _, set := range r.Adopted() {
		if s.Elements[set.Name], err = f.conn.Elements(set); errors.Is(err, nft.ErrNotFound) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	for _, e := range slices.Concat(s.Elements[r.Services.Name], s.Elements[r.NodePorts.Name]) {
		f.found = append(f.found, count(f.family, e))
	}
	a, ok := nftables.Adopt(r, s)
	if !ok {
		return nil, nil
	}
	return a, nil
}
