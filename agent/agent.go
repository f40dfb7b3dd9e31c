// Package agent is the loop that makes a node's kernel match the cluster: the
// newest Snapshot and the node's own pods become a Plan, and the Plan becomes
// kernel state. It decides nothing itself (see plan), and it is the only writer
// of the node's kernel state.
//
//	source ──► newest Snapshot ─┐
//	CNI requests ───────────────┼─► Run: Compile ─► links ─► proxy ─► answer
//	netlink notices, timers ────┘
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/apiserver"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/install"
	"github.com/podlane/podlane/internal/memory"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

const (
	linksEvery = 30 * time.Second // reads back the links, for drift that gives no notice
	auditEvery = 5 * time.Minute  // reads back the service tables, which costs more
	retryFirst = 100 * time.Millisecond
	retryMost  = 10 * time.Second
	tidyAfter  = 2 * time.Second // of quiet
	repeatLog  = time.Minute     // a repeated error is logged once in this time
	firstGC    = 400             // GOGC of the first apply; less of it costs a tenth of its time
)

// Source publishes the cluster's state: cluster/file or cluster/kube. Nothing
// comes before its first full sync.
type Source interface {
	Run(context.Context) error
	Snapshots() <-chan *cluster.Snapshot
}

// Config is what does not change while the agent runs.
type Config struct {
	Node     string
	Overlay  overlay.Config
	RunDir   string // of agent.sock
	StateDir string // of the allocation record
	ProcSys  string // where /proc/sys can be written; "" for /proc/sys
	Runtime  install.Runtime
	Servers  *apiserver.Servers // nil with a folder
	Probes   string             // address of /healthz and /readyz; "" is none
	Egress   egress.Config
	Policies Policies       // nil: not followed
	Events   bool           // warn by Events
	Warner   Warner         // of what the agent's own looks for traps find; nil: nobody is warned
	View     string         // address of the page, of the node itself; "" is none
	Reporter *kube.Reporter // of the node's condition and Events; nil: nothing is written
	FastPath FastPath
	DNS      cluster.Key // the Service of the cluster's DNS, whose servers are asked; zero: none
	SocketLB SocketLB
	Log      *slog.Logger
	LogLevel *slog.LevelVar // changed by VerbLogLevel; nil: it cannot be
	Operations
}

// Agent is one node's agent. All its fields belong to the goroutine of Run.
type Agent struct {
	config   Config
	source   Source
	log      *slog.Logger
	pods     *cni.Plugin
	links    links
	services services
	fast     fast
	sockets  sockets

	operations *operations // beside the services
	serving    *serving
	leaving    *leaving
	guarding   guarding
	probing    *probing
	telling    *telling
	figures    atomic.Pointer[ports.Figures] // for scrapes
	counted    int                           // problems
	countedAt  time.Time
	hostPorts  hostPorts
	dns        *localDNS
	snapshot   *cluster.Snapshot // nil before the first sync
	plan       *plan.Plan        // the last one compiled; nil before the first sync

	applied  string // the Snapshot's version
	failures int    // in a row
	lastErr  error
	lastLog  time.Time
	past     *PastError
	started  time.Time
	problems string // the last ones logged

	questions chan func() // to be run by the loop
}

// Run runs an agent until ctx ends. It leaves the kernel as it is.
func Run(ctx context.Context, c Config, source Source) (err error) {
	a := newAgent(c, source)
	if err := a.open(); err != nil {
		return err
	}
	defer a.close()
	a.operations.decide(ctx, &a.services)
	server, err := cni.Listen(filepath.Join(c.RunDir, "agent.sock"))
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	if err := a.links.changes.begin(ctx); err != nil {
		return err
	}
	a.fast.watch(ctx)
	g.Go(func() error { return server.Serve(ctx) })
	g.Go(func() error { return source.Run(ctx) })
	g.Go(func() error { return a.services.watch(ctx) })
	g.Go(func() error { return a.operations.run(ctx) })
	g.Go(func() error { return a.dns.run(ctx) })
	g.Go(func() error { return a.probing.prober.Run(ctx) })
	g.Go(func() error { return a.serving.endpoints(ctx, c.Probes, a.operations.ports.Metrics.Handler()) })
	g.Go(func() error { return a.view(ctx) })
	g.Go(func() error { return a.checkups(ctx) })
	if c.Reporter != nil {
		g.Go(func() error { return c.Reporter.Run(ctx) })
	}
	if c.Policies != nil {
		a.operations.ports.Metrics.Policies(func() int { all, _ := c.Policies.All(); return len(all) })
		g.Go(func() error { return c.Policies.Run(ctx) })
	}
	g.Go(func() error { return a.loop(ctx, server) })
	err = g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// newAgent makes an agent, and opens nothing.
func newAgent(c Config, source Source) *Agent {
	a := &Agent{config: c, source: source, log: c.Log.With("node", c.Node), started: time.Now(), questions: make(chan func())}
	a.operations = newOperations(c, a.log)
	a.operations.ports.Metrics.FastPath(a.fast.counts, a.sockets.counts)
	a.fast.count, a.sockets.count = a.operations.ports.Metrics.PartFailed, a.operations.ports.Metrics.PartFailed
	a.hostPorts.flows, a.hostPorts.node = a.operations.flows, c.Node
	a.serving, a.leaving, a.dns = newServing(c), newLeaving(c.Egress), newLocalDNS(c.DNS, a.log)
	a.operations.ports.Metrics.Agent(a.figures.Load, a.guarding.dropped)
	a.probing, a.telling = newProbing(a.log), newTelling(c.Reporter)
	return a
}

func (a *Agent) open() error {
	if err := a.links.open(a.config, a.log); err != nil {
		return err
	}
	if err := a.config.Runtime.Start(); err != nil {
		return err
	}
	if err := a.services.open(a.log); err != nil {
		return err
	}
	if err := a.fast.open(a.config.FastPath, a.log); err != nil {
		return err
	}
	if err := a.sockets.open(a.config.SocketLB, a.log); err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("boot id: %w", err)
	}
	var problems []error
	a.pods, problems, err = cni.Open(cni.Config{
		Node: a.config.Node, Dir: filepath.Join(a.config.StateDir, "allocations", "v1"), BootID: strings.TrimSpace(string(boot)),
	}, a.links.handle)
	for _, p := range problems {
		a.log.Warn("allocation record", "err", p)
	}
	return err
}

func (a *Agent) close() {
	a.links.close()
	a.services.close()
	a.fast.close()
	a.sockets.close()
}

// loop is the one writer of the kernel.
func (a *Agent) loop(ctx context.Context, server *cni.Server) error {
	relink := time.NewTicker(linksEvery)
	defer relink.Stop()
	audit := time.NewTicker(auditEvery)
	defer audit.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	tidy := time.NewTimer(tidyAfter)
	defer tidy.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case f := <-a.questions:
			f()
			continue
		case s := <-a.source.Snapshots():
			a.snapshot = s
			a.config.Servers.Learn(apiserver.Endpoints(s))
			a.tellPolicies()
		case first := <-server.Requests():
			a.answer(server.Batch(first))
		case a.dns.silent = <-a.dns.prober.Silent:
		case err := <-a.links.changes.notices:
			a.links.changes.heard(err)
			a.links.doubt()
			a.probing.prober.Again()
		case <-a.links.changes.again:
			a.links.changes.reopen(ctx)
			continue // its first notice comes at once
		case err := <-a.fast.policies.notices:
			a.fast.policies.heard(err)
			a.fast.doubt()
		case <-a.fast.policies.again:
			if !a.fast.policies.reopen(ctx) {
				continue
			}
			a.fast.doubt()
		case r := <-a.probing.prober.Results():
			a.probing.judge(r, time.Now())
		case e := <-a.services.notices:
			a.changed(e)
		case <-relink.C:
			a.links.doubt()
			a.collect()
			a.pods.Prepare()
			a.operations.tick(ctx, &a.services)
			a.probing.tick(time.Now())
		case <-audit.C:
			a.services.audit(a.plan)
			a.leaving.doubt()
			a.guarding.doubt()
			a.hostPorts.doubt()
		case <-retry.C:
		case <-tidy.C:
			a.services.tidy()
			continue
		}
		tidy.Reset(tidyAfter)
		a.turned()
		if a.fast.attach() {
			retry.Reset(time.Millisecond)
		} else if wait, failed := again(a.failures, a.fast.failed, a.sockets.failed); failed {
			retry.Reset(wait)
		}
		if a.services.applier.Missed() {
			a.changed(nft.Event{Lost: true})
			retry.Reset(time.Millisecond)
		}
	}
}

// turned is the end of each turn of the loop.
func (a *Agent) turned() {
	err := a.apply()
	a.settled(err)
	a.count(err)
	a.tell(time.Now())
}

// changed tells whoever has an nftables table that others may have changed it.
func (a *Agent) changed(e nft.Event) {
	a.services.changed(e)
	a.leaving.changed(e)
	a.guarding.changed(e)
	a.hostPorts.changed(e)
}

// apply brings the newest state to the kernel. It is cheap when nothing changed.
func (a *Agent) apply() error {
	if a.snapshot == nil {
		return nil
	}
	if a.plan == nil { // all at once, and little of it stays: collecting garbage meanwhile is wasted
		if before := debug.SetGCPercent(firstGC); before < 0 || before > firstGC {
			debug.SetGCPercent(before)
		} else {
			defer debug.SetGCPercent(before)
		}
	}
	err := a.compile()
	if a.plan == nil { // the first one has failed, and there is nothing to apply
		a.report(err)
		return err
	}
	err = errors.Join(err, a.guarding.apply(a.services.conn, a.plan), a.links.apply(a.plan), a.leaving.apply(a.services.conn, a.plan),
		a.hostPorts.apply(a.services.conn, a.pods.Allocations(), a.snapshot), a.serveServices())
	a.probing.try(a.plan)
	a.translate()
	a.fast.apply(a.plan, &a.links, a.normalPods())
	if err == nil {
		a.applied = a.snapshot.Version
	}
	a.report(err)
	return err
}

// compile makes the Plan of the newest Snapshot and the node's own pods.
func (a *Agent) compile() error {
	underlay, err := a.links.underlayOf(a.snapshot, a.config.Node)
	a.dns.follow(a.snapshot, a.config.Node)
	a.config.Proxy.Silent = a.dns.facts()
	in := plan.Input{
		Node: a.config.Node, Overlay: a.config.Overlay, Proxy: a.config.Proxy, Underlay: underlay,
		Snapshot: a.snapshot, Pods: ownPods(a.pods.Allocations()), Outside: a.config.Egress.Exclude, Probed: a.probing.probed,
	}
	if a.probing.probed == nil && err == nil {
		have, unread := a.links.handle.Read()
		if unread != nil {
			return unread
		}
		a.probing.begin(in.OverlayInput(), have)
		in.Probed = a.probing.probed
	}
	first := a.plan == nil
	if first {
		a.plan = plan.CompileAll(in)
	} else {
		a.plan = plan.Compile(a.plan, in)
	}
	a.pods.SetNetwork(network(a.plan, err))
	if first {
		a.collect()
		memory.Started()
		a.log.Info("synced", "nodes", a.snapshot.Nodes.Len(), "services", a.snapshot.Services.Len())
	}
	return err
}

// collect removes what is on record of pods that are gone. What they had is no
// longer wanted then, so the next apply compiles without them.
func (a *Agent) collect() {
	alive, err := a.links.handle.Names()
	if err != nil {
		a.log.Warn("collect", "err", err)
		return
	}
	gone, err := a.pods.Collect(func(al cni.Allocation) bool { return alive[al.Link] })
	for _, al := range gone {
		a.log.Info("collected what a pod left", "pod", al.PodName(), "dev", al.Link, "addrs", al.Addrs)
	}
	if err != nil {
		a.log.Warn("collect", "err", err)
	}
	if a.plan != nil && len(gone) > 0 {
		in := a.plan.Input
		in.Pods = ownPods(a.pods.Allocations())
		a.plan = plan.Compile(a.plan, in)
	}
}

// answer serves the runtime's requests and the ones about the agent itself.
func (a *Agent) answer(batch []*cni.Request) {
	var calls []*cni.Request
	for _, r := range batch {
		switch r.Verb {
		case VerbStatus:
			r.Reply(a.status())
		case VerbServe:
			r.Reply(a.takeOver())
		case VerbLogLevel:
			r.Reply(a.logLevel(string(r.Config)))
		case VerbExplain:
			a.explain(r)
		case VerbDoctor:
			a.look(r, scene.examination)
		case VerbReport:
			a.look(r, scene.report)
		case VerbConn:
			a.look(r, scene.connections)
		case shim.VerbCNI:
			calls = append(calls, r)
		default:
			r.Reply(shim.Reply{Error: &shim.Error{Code: shim.CodeEnvironment, Msg: "unknown request " + r.Verb}})
		}
	}
	for _, o := range a.pods.Handle(calls, a.apply) {
		log := a.log.With("command", o.Command, "pod", o.Allocation.PodName(), "addrs", o.Allocation.Addrs)
		if o.Err != nil {
			log.Warn("pod", "err", o.Err)
			continue
		}
		log.Info("pod")
	}
}

// report logs an error once, and again each minute that it stays, and says when
// it is over.
func (a *Agent) report(err error) {
	if err == nil {
		if a.failures > 0 {
			a.log.Info("recovered", "failures", a.failures)
			a.past = &PastError{a.lastErr.Error(), time.Now()}
		}
		a.failures, a.lastErr = 0, nil
		a.reportProblems()
		return
	}
	a.failures++
	same := a.lastErr != nil && a.lastErr.Error() == err.Error()
	a.lastErr = err
	if same && time.Since(a.lastLog) < repeatLog {
		return
	}
	a.lastLog = time.Now()
	a.log.Error("apply", "err", err, "failures", a.failures)
}

// reportProblems logs the overlay's problems when they change.
func (a *Agent) reportProblems() {
	var text []string
	for _, p := range a.plan.Problems {
		text = append(text, p.String())
	}
	now := strings.Join(text, "\n")
	if now == a.problems {
		return
	}
	a.problems = now
	for _, t := range text {
		a.log.Warn("problem", "err", t)
	}
}

// pause is how long to wait before the next try, after so many failures in a row.
func pause(failures int) time.Duration {
	return min(retryFirst<<min(failures, 10), retryMost)
}

// again gives how long to wait before what has failed so often in a row is tried again.
func again(failures ...int) (wait time.Duration, failed bool) {
	for _, n := range failures {
		if n > 0 && (!failed || pause(n) < wait) {
			wait, failed = pause(n), true
		}
	}
	return wait, failed
}

// network is what the node gives to new pods.
func network(p *plan.Plan, underlayErr error) cni.Network {
	if underlayErr != nil {
		return cni.Network{Problem: underlayErr.Error()}
	}
	if ps := p.OverlayInput().Check(); len(ps) > 0 {
		return cni.Network{Problem: ps[0].String()}
	}
	own := p.Snapshot.Nodes.Get(cluster.Key{Name: p.Node})
	return cni.Network{PodCIDRs: own.PodCIDRs, MTU: p.Base.PodMTU}
}

func ownPods(allocs []cni.Allocation) []overlay.Pod {
	pods := make([]overlay.Pod, 0, len(allocs))
	for _, al := range allocs {
		pods = append(pods, al.OnNode())
	}
	return pods
}
