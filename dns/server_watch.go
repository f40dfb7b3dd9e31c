package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/podlane/podlane/cluster"
)

// Query is a question that was answered.
type Query struct {
	At     time.Time
	Client netip.AddrPort
	Pod    cluster.Key // of the client, where it is known
	Name   Name
	Type   Type
	TCP    bool
	Code   Code
	Bytes  int // of the answer
	Took   time.Duration
}

// String gives the query as a line without an end.
func (q Query) String() string {
	proto, pod := "udp", q.Pod.String()
	if q.TCP {
		proto = "tcp"
	}
	if q.Pod == (cluster.Key{}) {
		pod = "-"
	}
	return fmt.Sprintf("%s %s %s %s %s %s %s %dB %s", q.At.Format("15:04:05.000"), q.Client, pod, proto, q.Name, q.Type, q.Code, q.Bytes, q.Took)
}

// watchers are those who want to see queries.
type watchers struct {
	some atomic.Bool
	lost atomic.Uint64
	mu   sync.Mutex
	list []*watcher
}

type watcher struct {
	match func(Query) bool
	out   chan Query
}

// watchBuffer is how many queries wait for who watches; the next are lost to it.
const watchBuffer = 1000

// Watch gives the queries that match, until stop is called. Who reads too slowly
// loses some; no answer waits for it.
func (s *Server) Watch(match func(Query) bool) (queries <-chan Query, stop func()) {
	w := &watcher{match, make(chan Query, watchBuffer)}
	ws := &s.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.list = append(ws.list, w)
	ws.some.Store(true)
	return w.out, func() {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		ws.list = slices.DeleteFunc(ws.list, func(o *watcher) bool { return o == w })
		ws.some.Store(len(ws.list) > 0)
	}
}

// show gives a query to who wants it.
func (s *Server) show(q Query) {
	if s.cfg.LogQueries {
		s.cfg.Log.Info("query", "client", q.Client, "pod", q.Pod, "name", q.Name, "type", q.Type,
			"tcp", q.TCP, "code", q.Code, "bytes", q.Bytes, "took", q.Took)
	}
	ws := &s.watchers
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.list {
		if !w.match(q) {
			continue
		}
		select {
		case w.out <- q:
		default:
			ws.lost.Add(1)
		}
	}
}

var descUnwatched = prometheus.NewDesc("podlane_dns_watched_queries_lost_total",
	"Counter of the queries that somebody watched for too slowly.", nil, nil)
