package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/kernel/bpf/socket"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/nftables/apply"
	"github.com/podlane/podlane/takeover"
)

// VerbServe asks the agent to serve the node's Services from now on, though
// kube-proxy is here: the first step of a takeover.
const VerbServe = "serve"

// Operations are the settings of the service proxy beside its rules.
type Operations struct {
	Mode    takeover.Mode // "" is auto
	Backend Backend       // "" is auto
	// IPTablesRoot is where the host's files are, for its iptables programs; "" is
	// "/".
	IPTablesRoot string
	Ports        ports.Addresses
	Proxy        proxy.Config // without Node
	// Warn writes a warning Event on a Service; nil: none.
	Warn func(service cluster.Key, reason, message string)
	// Config is what /configz shows.
	Config any
}

// operations is what goes with the service proxy beside its rules: whether the
// Services are ours at all, health, metrics, healthCheckNodePorts, and the flow
// table. Its fields belong to the goroutine of Run, but for what is atomic.
type operations struct {
	Operations
	log     *slog.Logger
	node    string
	bpfDir  string // of the counters of the translation at the socket
	procSys string // where /proc/sys can be written; "" for /proc/sys
	limits  string // file of the flow table's former limits
	record  string // file that names the backend in use, where it is not the default
	off     string // why the Services are not ours; "" where they are
	ports   *ports.Ports
	checks  *ports.Checks
	flows   *flows
	table   atomic.Pointer[proxy.Table] // what the kernel has, for scrapes
	seen    *cluster.Snapshot           // the last one counted
	waiting []time.Time                 // when the changes that the kernel does not have happened
	dirty   bool                        // something waits
	started time.Time
}

func newOperations(c Config, log *slog.Logger) *operations {
	o := &operations{Operations: c.Operations, node: c.Node, log: log, bpfDir: c.SocketLB.Dir, procSys: c.ProcSys, limits: filepath.Join(c.StateDir, FlowLimits), record: filepath.Join(c.StateDir, backendRecord),
		seen: &cluster.Snapshot{}, started: time.Now()}
	health := &ports.Health{}
	metrics := ports.NewMetrics(flowLevel, o.table.Load, o.countFlows)
	o.ports = &ports.Ports{Addresses: o.Ports, Health: health, Metrics: metrics, Mode: "nftables", Config: o.Config, Log: log}
	o.checks, o.flows = ports.NewChecks(health, log), newFlows(log, metrics)
	o.checks.Warn = o.Warn
	return o
}

func flowLevel() (count, most int, err error) {
	l, err := conntrack.ReadLevel()
	return l.Count, l.Max, err
}

// countFlows reads the kernel's counters of new flows; those of endpoints where a
// Service asks for it.
// Connections that were translated at their sockets are counted there.
func (o *operations) countFlows() (frontends, endpoints []ports.ServiceCount, err error) {
	conn, err := nft.Dial(0)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	counts, err := apply.Counts(conn)
	if err != nil {
		return nil, nil, err
	}
	flows, err := socket.ReadFlows(o.bpfDir)
	if err != nil {
		return nil, nil, err
	}
	apply.AddTranslated(counts, flows.Frontends)
	for _, c := range counts {
		frontends = append(frontends, serviceCount(c.Service, c.Protocol, c.Frontend, c.New))
	}
	if !countsEndpoints(o.table.Load()) {
		return frontends, nil, nil
	}
	of, err := apply.EndpointCounts(conn, "")
	if err != nil {
		return nil, nil, err
	}
	apply.AddTranslatedTo(of, counts, flows.Endpoints)
	for _, c := range of {
		endpoints = append(endpoints, serviceCount(c.Service, c.Protocol, c.Endpoint, c.New))
	}
	return frontends, endpoints, nil
}

// serviceCount takes apart an owner, "namespace/name:port".
func serviceCount(owner string, p cluster.Protocol, at netip.AddrPort, n uint64) ports.ServiceCount {
	owner, port, _ := strings.Cut(owner, ":")
	namespace, name, _ := strings.Cut(owner, "/")
	return ports.ServiceCount{Service: cluster.Key{Namespace: namespace, Name: name}, Port: port,
		Protocol: p.String(), Address: at.String(), New: n}
}

func countsEndpoints(t *proxy.Table) bool {
	if t == nil {
		return false
	}
	for _, e := range t.Services.All() {
		if len(e.Ports) > 0 && e.Ports[0].Count {
			return true
		}
	}
	return false
}

// run runs what has goroutines of its own.
func (o *operations) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.ports.Run(ctx) })
	g.Go(func() error { return o.flows.run(ctx) })
	return g.Wait()
}

// decide says whether the Services are ours, at the start and as long as they are
// not. What was taken over, or is in the kernel from before, stays ours.
func (o *operations) decide(ctx context.Context, s *services) {
	mode := o.Mode
	if mode == "" {
		mode = takeover.Auto
	}
	tables, err := s.conn.Tables()
	if err == nil && slices.Contains(tables, probed) {
		err = endProbe(s.conn)
	}
	if err != nil {
		o.log.Warn("service proxy", "err", err)
	}
	tables = slices.DeleteFunc(tables, func(t nft.Table) bool { return !ofServices(t) })
	if s.backend.record == "" {
		s.backend = backend{log: o.log, root: o.IPTablesRoot, record: o.record}
		s.backend.choose(o.Backend, s.conn, len(tables) > 0)
		o.ports.Mode = s.backend.name()
	}
	ours := len(tables) > 0 || s.backend.left()
	var e takeover.Evidence
	if mode == takeover.Auto && !ours {
		if e, err = takeover.Detect(ctx); err != nil {
			o.log.Warn("service proxy: the search for kube-proxy", "err", err)
		}
	}
	on, why := takeover.Decide(mode, e, ours)
	if on {
		o.serve()
		return
	}
	if why != o.off {
		o.log.Warn("service proxy off: " + why)
	}
	o.off = why
	if mode == takeover.Off && ours {
		if err := s.remove(); err != nil {
			o.log.Warn("service proxy off: removing our tables", "err", err)
		}
	}
}

// serve makes the Services ours.
func (o *operations) serve() {
	if o.off != "" {
		o.log.Info("service proxy on")
	}
	o.off = ""
	o.ports.On.Store(true)
	limits := conntrack.LimitsFor(runtime.NumCPU())
	limits.ProcSys = o.procSys
	raised, err := limits.Raise(o.limits)
	for _, s := range raised {
		o.log.Info("limit of the flow table raised", "path", s.Path, "was", s.Was, "now", s.Now)
	}
	if err != nil {
		o.log.Warn("limits of the flow table", "err", err)
	}
}

// tick is called now and then.
func (o *operations) tick(ctx context.Context, s *services) {
	if o.off != "" && o.Mode != takeover.Off {
		o.decide(ctx, s)
	}
	o.checks.Retry()
}

// before notes what a Plan brings.
func (o *operations) before(p *plan.Plan) {
	if p.Snapshot != o.seen {
		services, endpoints := o.count(p.Snapshot)
		o.ports.Metrics.Queued(services, endpoints)
		own := p.Snapshot.Nodes.Get(cluster.Key{Name: p.Node})
		o.ports.Health.SetNode(own != nil, own != nil && own.Leaving)
		o.seen, o.dirty = p.Snapshot, true
	}
	if o.dirty {
		o.ports.Health.Queued()
	}
	o.flows.coming.Store(p.Table)
}

// count counts the changes since the last Snapshot, and notes when those of
// endpoints happened, but for what happened before this agent was there.
func (o *operations) count(s *cluster.Snapshot) (services, endpoints int) {
	for range s.Services.Changed(o.seen.Services) {
		services++
	}
	for c := range s.Slices.Changed(o.seen.Slices) {
		endpoints++
		if c.New == nil || c.New.Triggered == "" {
			continue
		}
		if t, err := time.Parse(time.RFC3339Nano, c.New.Triggered); err == nil && t.After(o.started) {
			o.waiting = append(o.waiting, t)
		}
	}
	return services, endpoints
}

// after notes how it went.
func (o *operations) after(p *plan.Plan, found []apply.Count, took time.Duration, err error) {
	o.flows.had(found)
	if err != nil {
		o.ports.Metrics.Failed()
		o.dirty = true
		return
	}
	if o.dirty {
		o.ports.Metrics.Synced(took, o.waiting)
		o.waiting, o.dirty = nil, false
	}
	o.ports.Health.Updated()
	if o.table.Swap(p.Table) != p.Table {
		o.checks.Update(p.Table)
	}
}

// problems are those of the Services' health checks, and what is off.
func (o *operations) problems() []cluster.Problem {
	ps := o.checks.Problems()
	if o.off != "" {
		ps = append(ps, cluster.Problem{Kind: "service proxy of node", Key: cluster.Key{Name: o.node}, Err: "off: " + o.off})
	}
	return ps
}

// serveServices brings the Plan's Services to the kernel, with what goes with
// them, where they are ours.
func (a *Agent) serveServices() error {
	if a.operations.off != "" {
		return nil
	}
	a.operations.before(a.plan)
	start := time.Now()
	err := a.services.apply(a.plan)
	if a.services.built() {
		a.operations.flows.built.Send(built{a.plan.Table, a.plan.PodAddrs})
	}
	a.operations.after(a.plan, a.services.applier.Found(), time.Since(start), err)
	a.operations.flows.follow(brought{a.plan.Table, a.services.has()})
	return err
}

// takeOver answers VerbServe.
func (a *Agent) takeOver() shim.Reply {
	refuse := func(err error) shim.Reply {
		return shim.Reply{Error: &shim.Error{Code: shim.CodeFailed, Msg: err.Error()}}
	}
	if a.operations.Mode == takeover.Off {
		return refuse(fmt.Errorf("this agent was started with --service-proxy off"))
	}
	a.operations.serve()
	if a.snapshot == nil {
		return refuse(fmt.Errorf("the cluster's state is not known yet; try again"))
	}
	if err := a.apply(); err != nil {
		return refuse(err)
	}
	return a.status()
}
