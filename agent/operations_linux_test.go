package agent

import (
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/plan"
	"github.com/podlane/podlane/proxy"
)

// TestCountFlows: the kernel's counters get the names of the Service, its port,
// the frontend and, where it is asked for, the endpoint.
func TestCountFlows(t *testing.T) {
	w := newWorld(t)
	w.set(2)
	for c := w.dial("10.244.0.3:5353"); ask(c) != "10.244.0.3"; { // a link just made loses packets for up to a second
		t.Log("waiting for the link")
	}
	o := &operations{}
	o.table.Store(w.table)
	if _, endpoints, err := o.countFlows(); err != nil || endpoints != nil {
		t.Errorf("endpoints are counted though nobody asks for it: %v, %v", endpoints, err)
	}
	svc := *w.last.Services.Get(cluster.Key{Namespace: "default", Name: "dns"})
	svc.CountEndpoints, svc.Ports = true, []cluster.ServicePort{{Name: "q", Protocol: cluster.UDP, Port: 53, NodePort: 30053}}
	w.builder.SetService(&svc)
	slice := *w.last.Slices.Get(cluster.Key{Namespace: "default", Name: "dns-false"})
	slice.Ports = []cluster.EndpointPort{{Name: "q", Protocol: cluster.UDP, Port: 5353}}
	w.builder.SetSlice(&slice)
	w.apply()
	o.table.Store(w.table)
	for range 3 { // a flow each
		if got := ask(w.dial("10.96.0.10:53")); got != "10.244.0.2" {
			t.Fatal(got)
		}
	}
	frontends, endpoints, err := o.countFlows()
	if err != nil {
		t.Fatal(err)
	}
	count := func(of []ports.ServiceCount, address string) uint64 {
		for _, c := range of {
			if c.Address == address && c.Service == svc.Key && c.Port == "q" && c.Protocol == "UDP" {
				return c.New
			}
		}
		return 0
	}
	if f, e := count(frontends, "10.96.0.10:53"), count(endpoints, "10.244.0.2:5353"); f != 3 || e != 3 {
		t.Errorf("frontend %d, endpoint %d, want 3: %v, %v", f, e, frontends, endpoints)
	}
}

// TestWaiting: what the metric network_programming_duration has is counted from the
// annotation of the slice, over failures, and not for what happened before this agent
// was there.
func TestWaiting(t *testing.T) {
	o := newOperations(Config{Node: "n1", StateDir: t.TempDir()}, slog.New(slog.DiscardHandler))
	b := cluster.NewBuilder()
	set := func(name string, at time.Time) {
		b.SetSlice(&cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: name}, Service: "web", Triggered: at.Format(time.RFC3339Nano)})
	}
	p := func() *plan.Plan {
		return &plan.Plan{Input: plan.Input{Node: "n1", Snapshot: b.Publish()}, Table: &proxy.Table{}}
	}
	changed := o.started.Add(time.Second)
	set("old", o.started.Add(-time.Hour))
	set("new", changed)
	first := p()
	o.before(first)
	if len(o.waiting) != 1 || !o.waiting[0].Equal(changed) {
		t.Errorf("waiting %v, want what was changed after the start: %v", o.waiting, changed)
	}
	o.after(first, nil, time.Second, errors.New("the kernel is busy"))
	o.before(first) // the same once more
	set("another", changed.Add(time.Second))
	second := p()
	o.before(second)
	if len(o.waiting) != 2 {
		t.Errorf("after a failure and one more change %d wait, want 2", len(o.waiting))
	}
	o.after(second, nil, time.Second, nil)
	if len(o.waiting) != 0 {
		t.Errorf("all is in the kernel, and %d wait", len(o.waiting))
	}
}

// TestServeServices_oneFamily: IPv6 cannot be applied, since somebody holds a table of
// our name. IPv4's stale UDP flows, and what of its connections began without rules, are
// looked for nevertheless, once.
func TestServeServices_oneFamily(t *testing.T) {
	nettest.New(t)
	holdIPv6(t)
	log := slog.New(slog.DiscardHandler)
	c := Config{Node: "n1", StateDir: t.TempDir()}
	a := &Agent{config: c, log: log, operations: newOperations(c, log)}
	if err := a.services.open(log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.services.close)
	a.services.backend = backend{log: log, record: filepath.Join(t.TempDir(), "proxy-backend")}
	b := cluster.NewBuilder()
	b.SetService(&cluster.Service{Key: cluster.Key{Namespace: "default", Name: "web"}, ClusterIPs: []netip.Addr{netip.MustParseAddr("10.96.0.1")},
		Ports: []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}})
	a.plan = plan.CompileAll(plan.Input{Node: "n1", Snapshot: b.Publish()})
	for i, want := range []int{1, 0, 0} {
		if err := a.serveServices(); err == nil || !strings.Contains(err.Error(), "ip6") || strings.Contains(err.Error(), "proxy, ip:") {
			t.Fatalf("error %v, want one of IPv6 alone", err)
		}
		if got := len(a.operations.flows.built); got != want {
			t.Errorf("try %d: %d looks, want %d", i, got, want)
		}
		for len(a.operations.flows.built) > 0 {
			if b := <-a.operations.flows.built; b.table != a.plan.Table {
				t.Error("a look with another Table")
			}
		}
		if got := len(a.operations.flows.applied); got != want {
			t.Errorf("try %d: %d Tables to look at flows by, want %d", i, got, want)
		}
		for len(a.operations.flows.applied) > 0 {
			if b := <-a.operations.flows.applied; b.table != a.plan.Table || b.has != [2]bool{true, false} {
				t.Errorf("the kernel is said to have a Table of %v, want of IPv4 alone", b.has)
			}
		}
	}
}

// holdIPv6 has somebody hold an IPv6 table of our name, which keeps us from taking over
// what there is of IPv6, until release or the test's end.
func holdIPv6(t *testing.T) (release func()) {
	t.Helper()
	return hold(t, "ip6 podlane-0")
}

// hold has somebody hold a table that is not there yet, until release or the test's end.
func hold(t *testing.T, table string) (release func()) {
	t.Helper()
	holder := exec.CommandContext(t.Context(), "nft", "-i")
	in, err := holder.StdinPipe()
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() { _ = in.Close(); _ = holder.Wait() })
	t.Cleanup(release)
	if _, err := io.WriteString(in, "add table "+table+" { flags owner; }\n"); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); !strings.Contains(nettest.Run(t, "nft", "list", "tables"), "table "+table); {
		if time.Now().After(end) {
			t.Skip("this nft makes no tables with an owner")
		}
		time.Sleep(10 * time.Millisecond)
	}
	return release
}
