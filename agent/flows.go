package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/newest"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables/apply"
	"github.com/podlane/podlane/proxy/stale"
)

// flows forgets UDP flows that the rules would no longer lead where they go, and after
// a time without rules the TCP connections that began then and wait for an answer. It
// has a goroutine and a socket of its own, since a flow table may have a million
// flows: it deletes flows and writes no state that the loop writes. A flow may be
// looked at by an older Table than the one that made it; so what is stale must be
// so by the newest Table on its way to the kernel too.
type flows struct {
	log     *slog.Logger
	metrics *ports.Metrics
	applied newest.Chan[brought]        // what the kernel has: rules first, then flows
	sent    brought                     // the last of these, of the loop
	coming  atomic.Pointer[proxy.Table] // what it may have any moment

	ports portFlows

	found atomic.Pointer[[]apply.Count] // what a former agent left, until it was looked at
	built newest.Chan[built]            // rules that were made where there may have been none

	index *stale.Index // of the goroutine of run
	due   [2]bool      // by proxy.Family: to be looked at, though no Table may have changed
	bare  *built       // the last of built, until what began before it was looked at
}

// brought is a Table and which families the kernel has it of, by proxy.Family: one that
// cannot be brought there does not keep the other one's flows waiting.
type brought struct {
	table *proxy.Table
	has   [2]bool
}

// built are rules made anew, of a family or of both.
type built struct {
	table *proxy.Table
	pods  []netip.Addr // of the node
}

const (
	flowTries = 5               // of a list that was partial
	flowsLate = 5 * time.Second // when the flows are looked at again after an error
)

func newFlows(log *slog.Logger, m *ports.Metrics) *flows {
	return &flows{log: log, metrics: m, applied: make(newest.Chan[brought], 1), built: make(newest.Chan[built], 1), index: stale.New(),
		ports: portFlows{applied: make(newest.Chan[published], 1)}}
}

// run looks at the flows after each change that may have made some stale.
func (f *flows) run(ctx context.Context) error {
	var b brought
	late := time.NewTimer(0)
	defer late.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case b = <-f.applied:
			err = f.look(b)
		case anew := <-f.built:
			f.bare, f.due = &anew, [2]bool{true, true}
			err = errors.Join(f.look(b), f.lookBare())
		case f.ports.due = <-f.ports.applied:
			err = f.lookPorts()
		case <-late.C:
			err = errors.Join(f.look(b), f.lookBare(), f.lookPorts())
		}
		if err != nil {
			late.Reset(flowsLate)
			f.log.Warn("stale flows; they are looked for again", "err", err)
		}
	}
}

// follow is told of each try to bring a Table to the kernel, from the loop's goroutine.
func (f *flows) follow(b brought) {
	if b == f.sent || b.has == [2]bool{} {
		return
	}
	f.sent = b
	f.applied.Send(b)
}

// look looks at the UDP flows of the families that are due and of which the kernel has the
// Table. A nil Table is none yet.
func (f *flows) look(b brought) error {
	if b.table == nil {
		return nil
	}
	if f.update(b.table) {
		f.due = [2]bool{true, true}
	}
	if !f.due[0] && !f.due[1] {
		return nil
	}
	err := f.reconcile(b)
	for i, v6 := range []bool{false, true} {
		if !f.due[i] {
			f.index.Settled(v6)
		}
	}
	return err
}

// lookBare looks at the TCP connections that began where there may have been no rules.
// It needs no Table that all of the kernel has, so that a family which cannot be applied
// does not keep the other one's connections waiting.
func (f *flows) lookBare() error {
	if f.bare == nil {
		return nil
	}
	err := f.unanswered(f.bare.table, f.bare.pods)
	if err == nil {
		f.bare = nil
	}
	return err
}

// settle is for how long a connection has to be without an answer.
const settle = 500 * time.Millisecond

// unanswered forgets the TCP connections to frontends, and those of the node's pods, that
// are not translated and still have no answer after a while: the next packet of the client, which
// repeats its first one, meets the rules. One that was answered is left alone.
func (f *flows) unanswered(t *proxy.Table, pods []netip.Addr) error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	before, err := waiting(conn, t, pods)
	if len(before) == 0 {
		return err
	}
	time.Sleep(settle)
	now, again := waiting(conn, t, pods)
	errs, n := []error{err, again}, 0
	for id, flow := range now {
		if _, still := before[id]; still {
			errs = append(errs, conn.Delete(flow))
			n++
		}
	}
	if n > 0 {
		f.log.Info("TCP connections that began without rules are translated now", "flows", n)
	}
	return errors.Join(errs...)
}

// waiting gives the connections without an answer, by the kernel's name of them.
func waiting(conn *conntrack.Conn, t *proxy.Table, pods []netip.Addr) (map[uint32]conntrack.Flow, error) {
	fronts, found := stale.TCPFrontends(t), map[uint32]conntrack.Flow{}
	var errs []error
	for _, v6 := range []bool{false, true} {
		errs = append(errs, conn.Each(uint8(cluster.TCP), v6, func(flow conntrack.Flow) {
			untranslated := flow.Reply.Src == flow.Orig.Dst && flow.Reply.Dst == flow.Orig.Src
			_, ofPod := slices.BinarySearchFunc(pods, flow.Orig.Src.Addr(), netip.Addr.Compare)
			if !flow.Answered && untranslated && (ofPod || fronts[flow.Orig.Dst]) {
				found[flow.ID] = flow
			}
		}))
	}
	return found, errors.Join(errs...)
}

// had notes what a former agent left, from the loop's goroutine.
func (f *flows) had(fronts []apply.Count) {
	if len(fronts) == 0 {
		return
	}
	if before := f.found.Load(); before != nil {
		fronts = append(fronts, *before...)
	}
	f.found.Store(&fronts)
}

// update brings the index to a Table, and says whether there may be stale flows. The
// first time these may be of a Service that was deleted while no agent ran.
func (f *flows) update(t *proxy.Table) bool {
	found := f.found.Swap(nil)
	if found == nil {
		return f.index.Update(t)
	}
	scan := false
	for _, c := range *found {
		if c.Protocol == cluster.UDP {
			f.index.Had(serviceCount(c.Service, c.Protocol, c.Frontend, 0).Service, c.Frontend)
			scan = true
		}
	}
	return f.index.Update(t) || scan
}

// reconcile looks once at all UDP flows of the families that are due.
func (f *flows) reconcile(b brought) error {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return err
	}
	defer conn.Close()
	own, err := ownAddrs()
	if err != nil {
		return err
	}
	due := f.due
	f.due = [2]bool{due[0] && !b.has[0], due[1] && !b.has[1]}
	var errs []error
	for i, v6 := range []bool{false, true} {
		if !due[i] || !b.has[i] {
			continue
		}
		if err := f.reconcileFamily(conn, b.table, v6, own); err != nil {
			f.due[i] = true
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// reconcileFamily looks at the flows of one family.
func (f *flows) reconcileFamily(conn *conntrack.Conn, t *proxy.Table, v6 bool, own func(netip.Addr) bool) error {
	start := time.Now()
	found, err := find(conn, v6, func(flow conntrack.Flow) bool {
		_, is := f.index.Stale(flow.Orig.Dst, flow.Reply.Src, own)
		return is
	})
	if now := f.coming.Load(); now != nil && now != t && f.index.Update(now) {
		f.due = [2]bool{true, true} // for what is not in the kernel yet
	}
	deleted, failed := f.forget(conn, found, own)
	for k, n := range deleted {
		f.log.Info("stale UDP flows forgotten", "service", k, "flows", n)
	}
	f.metrics.Reconciled(v6, time.Since(start), deleted)
	return errors.Join(err, failed)
}

// find lists the flows that are stale by what the kernel has.
func find(conn *conntrack.Conn, v6 bool, stale func(conntrack.Flow) bool) ([]conntrack.Flow, error) {
	var found []conntrack.Flow
	var err error
	for range flowTries {
		found = found[:0]
		err = conn.Each(uint8(cluster.UDP), v6, func(flow conntrack.Flow) {
			if stale(flow) {
				found = append(found, flow)
			}
		})
		if !errors.Is(err, conntrack.ErrPartial) {
			break
		}
	}
	return found, err
}

// forget deletes what is stale still.
func (f *flows) forget(conn *conntrack.Conn, found []conntrack.Flow, own func(netip.Addr) bool) (map[cluster.Key]int, error) {
	n := map[cluster.Key]int{}
	var errs []error
	for _, flow := range found {
		k, is := f.index.Stale(flow.Orig.Dst, flow.Reply.Src, own)
		if !is {
			continue
		}
		if err := conn.Delete(flow); err != nil {
			errs = append(errs, err)
			continue
		}
		n[k]++
	}
	return n, errors.Join(errs...)
}

// ownAddrs gives whether an address is one of this network namespace.
func ownAddrs() (func(netip.Addr) bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	own := map[netip.Addr]bool{}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own[p.Addr()] = true
		}
	}
	return func(a netip.Addr) bool { return own[a] }, nil
}
