package dns

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Each goroutine that answers counts for itself, and a scrape adds up: a counter
// shared by all cores would cost more than the answer.

// counted are the types that requests are counted by; the last is the rest.
var counted = [...]Type{
	TypeA, TypeAAAA, TypeSRV, TypePTR, TypeCNAME, TypeTXT, TypeSOA, TypeNS, TypeMX, TypeHTTPS, TypeANY, 0,
}

// buckets are the upper ends of the duration histogram in seconds: CoreDNS's.
var buckets = prometheus.ExponentialBuckets(0.00025, 2, 16)

// stats is what one goroutine counted. The first index is the zone: 0 for what is
// outside, 1 for the cluster's.
type stats struct {
	requests  [2][2][2][len(counted)]atomic.Uint64 // zone, TCP, IPv6, type
	responses [2][16]atomic.Uint64                 // zone, code
	durations [2][17]atomic.Uint64                 // zone, bucket
	nanos     [2]atomic.Uint64
}

func (s *stats) observe(w *worker, client netip.Addr, code Code, took time.Duration) {
	z := index(w.local)
	s.requests[z][index(w.stream)][index(!client.Unmap().Is4())][typeIndex(w.q.Type)].Add(1)
	s.responses[z][code].Add(1)
	s.durations[z][bucket(took)].Add(1)
	s.nanos[z].Add(uint64(took))
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

func typeIndex(t Type) int {
	for i, c := range counted {
		if c == t {
			return i
		}
	}
	return len(counted) - 1
}

func bucket(d time.Duration) int {
	i, end := 0, 250*time.Microsecond
	for i < 16 && d > end {
		i, end = i+1, 2*end
	}
	return i
}

// statsList is the counts of all goroutines. A TCP connection shares one.
type statsList struct {
	mu     sync.Mutex
	all    []*stats
	shared *stats
	panics atomic.Uint64
}

func (l *statsList) add() *stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &stats{}
	l.all = append(l.all, s)
	return s
}

func (l *statsList) tcp() *stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shared == nil {
		l.shared = &stats{}
		l.all = append(l.all, l.shared)
	}
	return l.shared
}

// sum adds up one counter of all goroutines.
func (l *statsList) sum(of func(*stats) *atomic.Uint64) uint64 {
	var n uint64
	for _, s := range l.all {
		n += of(s).Load()
	}
	return n
}

var (
	descRequests = prometheus.NewDesc("coredns_dns_requests_total",
		"Counter of DNS requests made per zone, protocol and family.",
		[]string{"server", "zone", "view", "proto", "family", "type"}, nil)
	descResponses = prometheus.NewDesc("coredns_dns_responses_total",
		"Counter of response status codes.",
		[]string{"server", "zone", "view", "rcode", "plugin"}, nil)
	descDuration = prometheus.NewDesc("coredns_dns_request_duration_seconds",
		"Histogram of the time (in seconds) each request took per zone.",
		[]string{"server", "zone", "view"}, nil)
	descPanics = prometheus.NewDesc("coredns_panics_total", "Counter of the panics that were caught.", nil, nil)
	descHits   = prometheus.NewDesc("coredns_cache_hits_total", "Counter of cache hits.",
		[]string{"server", "type", "zones", "view"}, nil)
	descMisses = prometheus.NewDesc("coredns_cache_misses_total", "Counter of cache misses.",
		[]string{"server", "zones", "view"}, nil)
	descEntries = prometheus.NewDesc("podlane_dns_cache_entries", "Answers in the cache.", nil, nil)
	descBytes   = prometheus.NewDesc("podlane_dns_cache_bytes", "About the memory of the cache.", nil, nil)
	descSynced  = prometheus.NewDesc("podlane_dns_synced", "1 when there is a zone to answer from.", nil, nil)
)

var serverDescs = []*prometheus.Desc{descRequests, descResponses, descDuration, descPanics, descHits,
	descMisses, descEntries, descBytes, descSynced, descSearched, descUnwatched}

// collector gives a Server's counts to prometheus. The names and labels are
// CoreDNS's, where the meaning is the same; "server" is what CoreDNS has for a
// server block on port 53, "zone" the cluster's zone or "." for all other names.
type collector struct{ s *Server }

const serverLabel = "dns://:53"

// Collector gives the server's metrics.
func (s *Server) Collector() prometheus.Collector { return collector{s} }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(serverDescs, forwardDescs) {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	l := &c.s.stats
	l.mu.Lock()
	defer l.mu.Unlock()
	for z, zone := range []string{".", c.s.cfg.Domain.String()} {
		c.requests(ch, z, zone)
		c.responses(ch, z, zone)
		c.durations(ch, z, zone)
	}
	ch <- prometheus.MustNewConstMetric(descPanics, prometheus.CounterValue, float64(l.panics.Load()))
	ch <- prometheus.MustNewConstMetric(descSynced, prometheus.GaugeValue, float64(index(c.s.zone.Load() != nil)))
	c.s.collectSearched(ch)
	ch <- counter(descUnwatched, c.s.watchers.lost.Load())
	if f := c.s.cfg.Forwarder; f != nil {
		f.collect(ch)
	}
}

func (c collector) requests(ch chan<- prometheus.Metric, z int, zone string) {
	for p, proto := range []string{"udp", "tcp"} {
		for f, family := range []string{"1", "2"} { // IANA's address family numbers
			for t, typ := range counted {
				n := c.s.stats.sum(func(s *stats) *atomic.Uint64 { return &s.requests[z][p][f][t] })
				if n == 0 {
					continue
				}
				name := "other"
				if typ != 0 {
					name = typ.String()
				}
				ch <- prometheus.MustNewConstMetric(descRequests, prometheus.CounterValue, float64(n),
					serverLabel, zone, "", proto, family, name)
			}
		}
	}
}

func (c collector) responses(ch chan<- prometheus.Metric, z int, zone string) {
	plugin := []string{"forward", "kubernetes"}[z]
	for code := range Code(16) {
		if n := c.s.stats.sum(func(s *stats) *atomic.Uint64 { return &s.responses[z][code] }); n > 0 {
			ch <- prometheus.MustNewConstMetric(descResponses, prometheus.CounterValue, float64(n),
				serverLabel, zone, "", code.String(), plugin)
		}
	}
}

func (c collector) durations(ch chan<- prometheus.Metric, z int, zone string) {
	cumulative, total := map[float64]uint64{}, uint64(0)
	for b := range 17 {
		total += c.s.stats.sum(func(s *stats) *atomic.Uint64 { return &s.durations[z][b] })
		if b < len(buckets) {
			cumulative[buckets[b]] = total
		}
	}
	if total == 0 {
		return
	}
	nanos := c.s.stats.sum(func(s *stats) *atomic.Uint64 { return &s.nanos[z] })
	ch <- prometheus.MustNewConstHistogram(descDuration, total, float64(nanos)/1e9, cumulative,
		serverLabel, zone, "")
}
