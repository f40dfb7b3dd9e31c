package agent

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/install"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/plan"
)

// links keeps the node's links, routes and neighbours as a Plan wants them.
type links struct {
	handle  *link.Handle
	changes watching
	// applied is what the kernel has; nil where that is not known and has to be
	// read back.
	applied  *link.State
	former   *install.Former // values of sysctls before the first change
	underlay link.Underlay
	address  netip.Addr // the node's, for which underlay was read
	doubts   int        // how often there was one
	looked   bool       // at what there was before
	found    bool       // an agent before this one has applied something
}

func (l *links) open(c Config, log *slog.Logger) (err error) {
	l.former = install.NewFormer(c.StateDir)
	if l.handle, err = link.Open(c.ProcSys); err != nil {
		return err
	}
	l.changes = watching{what: "changes of links", log: log, open: l.handle.Watch}
	return nil
}

func (l *links) close() { _ = l.handle.Close() }

// doubt says that the kernel may have changed by other hands.
func (l *links) doubt() {
	l.applied, l.address = nil, netip.Addr{}
	l.doubts++
}

// apply brings the Plan's links to the kernel. After an error it is not known
// what the kernel has, so the next apply reads it back. While the own node's
// object is unusable all stays as it is: an object that is gone for a moment must
// not cost running pods their network.
func (l *links) apply(p *plan.Plan) error {
	if l.madeAnew() {
		l.doubt()
	}
	if l.applied == p.Link {
		return nil
	}
	if ps := p.OverlayInput().Check(); len(ps) > 0 {
		return fmt.Errorf("links stay as they are: %s", ps[0])
	}
	have, err := l.have(p.Link)
	if err != nil {
		return err
	}
	if !l.looked {
		l.looked, l.found = true, len(have.Links) > 0 || len(have.Routes) > 0
	}
	l.applied = nil
	if err := l.former.Keep(have.Sysctls, p.Link.Sysctls); err != nil {
		return err
	}
	if err := l.handle.Apply(link.Diff(have, *p.Link)); err != nil {
		return err
	}
	l.applied = p.Link
	return nil
}

// madeAnew says that a pod has got a link anew of which the kernel is believed to have one:
// what was on that one is not there.
func (l *links) madeAnew() bool {
	added := l.handle.Added()
	return l.applied != nil && slices.ContainsFunc(added, func(name string) bool {
		_, had := l.applied.Links[name]
		return had
	})
}

func (l *links) have(want *link.State) (link.State, error) {
	if l.applied != nil {
		return *l.applied, nil
	}
	return l.handle.Read(slices.Sorted(maps.Keys(want.Sysctls))...)
}

// underlayOf reads the link that has the node's address. It is read again only
// after a doubt or when the address changes.
func (l *links) underlayOf(s *cluster.Snapshot, node string) (link.Underlay, error) {
	n := s.Nodes.Get(cluster.Key{Name: node})
	if n == nil || len(n.Addresses) == 0 {
		return link.Underlay{}, nil // the overlay reports it
	}
	if n.Addresses[0] == l.address {
		return l.underlay, nil
	}
	u, err := l.handle.ReadUnderlay(n.Addresses[0])
	if err != nil {
		return link.Underlay{}, fmt.Errorf("node %s: InternalIP %s: %w", node, n.Addresses[0], err)
	}
	l.underlay, l.address = u, n.Addresses[0]
	return u, nil
}
