package e2e

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cluster/kube"
)

const wait = 90 * time.Second // for what must come; a busy machine is slow

// source is what the agent needs of a source.
type source interface {
	Run(context.Context) error
	Snapshots() <-chan *cluster.Snapshot
	Problems() []cluster.Problem
}

// follower keeps the newest Snapshot of a source.
type follower struct {
	source
	t    *testing.T
	last *cluster.Snapshot
	log  *lockedLog
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func followKube(t *testing.T, o kube.Options) *follower {
	t.Helper()
	f := &follower{t: t, log: &lockedLog{}}
	o.Log = slog.New(slog.NewTextHandler(f.log, nil))
	s, err := kube.New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.source = s
	f.run()
	return f
}

func followFile(t *testing.T, path string) *follower {
	t.Helper()
	s, err := file.New(path, file.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, source: s}
	f.run()
	return f
}

func (f *follower) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

// until waits for a Snapshot in which is holds, and gives it.
func (f *follower) until(what string, is func(*cluster.Snapshot) bool) *cluster.Snapshot {
	f.t.Helper()
	limit := time.After(wait)
	for f.last == nil || !is(f.last) {
		select {
		case f.last = <-f.Snapshots():
		case <-limit:
			f.t.Fatalf("%s did not come; problems %v", what, f.Problems())
		}
	}
	return f.last
}

// equals waits until the Snapshot, as seen by view, is the wanted one.
func (f *follower) equals(want plain, view func(*cluster.Snapshot) plain) {
	f.t.Helper()
	limit := time.After(wait)
	for {
		diff := "no Snapshot came"
		if f.last != nil {
			if diff = cmp.Diff(want, view(f.last), compareAddrs); diff == "" {
				return
			}
		}
		select {
		case f.last = <-f.Snapshots():
		case <-limit:
			f.t.Fatalf("problems %v\n%s", f.Problems(), diff)
		}
	}
}

// problem waits for a problem with this text; "" waits until there is none.
func (f *follower) problem(text string) {
	f.t.Helper()
	for end := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		var all []string
		for _, p := range f.Problems() {
			all = append(all, p.String())
		}
		if text == "" && len(all) == 0 || text != "" && strings.Contains(strings.Join(all, "\n"), text) {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("problems are %q, want %q", all, text)
		}
	}
}

var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

// plain is a Snapshot as plain maps by "namespace/name".
type plain struct {
	Nodes      map[string]cluster.Node
	Namespaces map[string]cluster.Namespace
	Pods       map[string]cluster.Pod
	Services   map[string]cluster.Service
	Slices     map[string]cluster.EndpointSlice
	Endpoints  map[string][]string // names of slices
}

// whole gives everything.
func whole(s *cluster.Snapshot) plain {
	p := plain{Nodes: values(s.Nodes), Namespaces: values(s.Namespaces), Pods: values(s.Pods),
		Services: values(s.Services), Slices: values(s.Slices), Endpoints: map[string][]string{}}
	for k, e := range s.Endpoints.All() {
		for _, s := range e.Slices {
			p.Endpoints[k.String()] = append(p.Endpoints[k.String()], s.Key.String())
		}
	}
	return p
}

func values[V any](m cluster.Map[V]) map[string]V {
	out := map[string]V{}
	for k, v := range m.All() {
		out[k.String()] = *v
	}
	return out
}

// written is what the text of a manifest can say: without what the API server
// adds on its own.
func written(s *cluster.Snapshot) plain {
	p := whole(s)
	for k, v := range p.Nodes {
		v.UID, v.Created = "", 0
		p.Nodes[k] = v
	}
	for k, v := range p.Pods {
		v.UID = ""
		p.Pods[k] = v
	}
	for k, v := range p.Services {
		v.UID = ""
		p.Services[k] = v
	}
	for _, ns := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		delete(p.Namespaces, ns)
	}
	delete(p.Services, "default/kubernetes")
	delete(p.Slices, "default/kubernetes")
	delete(p.Endpoints, "default/kubernetes")
	return p
}

// served is what a service proxy needs (kube.Services).
func served(s *cluster.Snapshot) plain {
	p := whole(s)
	out := plain{Services: map[string]cluster.Service{}, Slices: map[string]cluster.EndpointSlice{}, Endpoints: map[string][]string{}}
	for k, v := range p.Services {
		if v.ProxyName == "" && !v.Headless {
			out.Services[k] = v
		}
	}
	for k, v := range p.Slices {
		if !v.Headless {
			out.Slices[k] = v
		}
	}
	for k, names := range p.Endpoints {
		for _, n := range names {
			if _, ok := out.Slices[n]; ok {
				out.Endpoints[k] = append(out.Endpoints[k], n)
			}
		}
	}
	return out
}
