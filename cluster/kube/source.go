// Package kube follows a kube-apiserver and makes Snapshots of what it holds. It
// never writes to the server, and asks only for the kinds it is told to follow.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/apiserver"
	"github.com/podlane/podlane/internal/newest"
)

// together is the shortest time between two Snapshots: what arrives meanwhile
// goes into the second one.
const together = 5 * time.Millisecond

// backoff is how requests that fail are repeated: soon, since an API server that
// restarts is back in seconds, and with jitter, since all nodes ask at once.
var backoff = wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 1, Steps: 7, Cap: 10 * time.Second}

// Options say which server is followed and what of it.
type Options struct {
	// Kubeconfig is a file; "" is the service account of the pod.
	Kubeconfig string
	// Server is the server's address, where it is another than that of Kubeconfig or of
	// the Service "kubernetes".
	Server string
	// Servers are asked where that one does not answer; nil: none.
	Servers *apiserver.Servers
	Kinds   Kinds
	// Node is the node whose Pods are followed; "" is all of them.
	Node string
	Log  *slog.Logger // nil: none
}

// Source follows a kube-apiserver. While the server is away, the last Snapshot
// stands; afterwards the Source resumes where it was, or reads everything again
// where the server no longer knows.
type Source struct {
	clients clients
	kinds   []kind
	log     *slog.Logger
	out     newest.Chan[*cluster.Snapshot]
	wake    chan struct{}

	mu      sync.Mutex // of builder and the stores
	builder *cluster.Builder
	stores  []*store
	started bool

	reportMu sync.Mutex
	troubles map[string]trouble // by resource
	logged   map[string]time.Time
}

// New makes a Source. It reads the kubeconfig and asks nothing of the server.
func New(o Options) (*Source, error) {
	_, cs, err := o.connect()
	if err != nil {
		return nil, err
	}
	s := &Source{
		clients: cs, kinds: kindsOf(o.Kinds, o.Node), log: o.Log, out: make(newest.Chan[*cluster.Snapshot], 1),
		wake: make(chan struct{}, 1), builder: cluster.NewBuilder(),
		troubles: map[string]trouble{}, logged: map[string]time.Time{},
	}
	if len(s.kinds) == 0 {
		return nil, errors.New("kube source: no kinds to follow")
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, k := range s.kinds {
		s.stores = append(s.stores, &store{Source: s, kind: k, keys: map[cluster.Key]bool{}})
	}
	return s, nil
}

// Snapshots gives the newest Snapshot that was not taken yet. The first one comes
// when every kind has been read.
func (s *Source) Snapshots() <-chan *cluster.Snapshot { return s.out }

// Run follows the server until ctx ends, which is no error. It may be called
// once. A request that waits to be repeated may outlive it by some seconds.
func (s *Source) Run(ctx context.Context) error {
	for _, st := range s.stores {
		go st.run(ctx)
	}
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		s.publish()
		pause.Reset(together)
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
	}
}

// wakeUp tells Run that something arrived.
func (s *Source) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Source) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.stores {
		if !st.synced {
			return
		}
	}
	if s.started && !s.builder.Pending() {
		return
	}
	if !s.started {
		s.log.Info("all lists are read")
	}
	s.started = true
	s.out.Send(s.builder.Publish())
}
