package agent

import (
	"errors"
	"fmt"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
)

// leaving keeps the table that masquerades what leaves the cluster.
type leaving struct {
	config  egress.Config
	nodes   *cluster.Map[cluster.Node]  // for which it was compiled; nil after a doubt
	applied map[nft.Family]egress.Rules // what the kernel has
}

func newLeaving(c egress.Config) *leaving {
	return &leaving{config: c, applied: map[nft.Family]egress.Rules{}}
}

// doubt says that the kernel may have other rules.
func (l *leaving) doubt() { l.nodes = nil; clear(l.applied) }

// changed is told of changes of tables by somebody else.
func (l *leaving) changed(e nft.Event) {
	if e.Lost || e.Table.Name == egress.Name {
		l.doubt()
	}
}

// apply brings the rules to the kernel. It is cheap while the nodes are the same. While
// the own node's object is unusable all stays as it is, as the links do.
func (l *leaving) apply(conn *nft.Conn, p *plan.Plan) error {
	if l.nodes != nil && sameNodes(*l.nodes, p.Snapshot.Nodes) || p.OverlayInput().Check() != nil {
		return nil
	}
	var errs []error
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		if err := l.applyFamily(conn, f, egress.Compile(l.config, p.Node, p.Snapshot.Nodes, f)); err != nil {
			errs = append(errs, fmt.Errorf("masquerading, %s: %w", f, err))
		}
	}
	if len(errs) == 0 {
		l.nodes = &p.Snapshot.Nodes
	}
	return errors.Join(errs...)
}

func sameNodes(a, b cluster.Map[cluster.Node]) bool {
	for range b.Changed(a) {
		return false
	}
	return true
}

func (l *leaving) applyFamily(conn *nft.Conn, f nft.Family, r egress.Rules) error {
	had, known := l.applied[f]
	if known && had.Equal(r) {
		return nil
	}
	delete(l.applied, f)
	t := nft.Table{Family: f, Name: egress.Name}
	var err error
	if len(r.Sources) == 0 {
		err = deleteTable(conn, t)
	} else {
		err = conn.CommitWhole(t, r.Tx(f), written(known, len(had.Sources) > 0, func() *nft.Tx { return had.Tx(f) }))
	}
	if err != nil {
		return err
	}
	l.applied[f] = r
	return nil
}

// written is the transaction that wrote a table: nil where that is not known, empty where there is no table.
func written(known, some bool, tx func() *nft.Tx) *nft.Tx {
	switch {
	case !known:
		return nil
	case !some:
		return &nft.Tx{}
	}
	return tx()
}

// deleteTable deletes a table where there is one.
func deleteTable(conn *nft.Conn, t nft.Table) error {
	tables, err := conn.Tables()
	if err != nil || !slices.Contains(tables, t) {
		return err
	}
	tx := &nft.Tx{}
	tx.DeleteTable(t)
	return conn.Commit(tx)
}
