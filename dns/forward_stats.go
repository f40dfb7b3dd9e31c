package dns

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// forwardCounts is what a Forwarder counted beside its cache and its upstreams.
type forwardCounts struct {
	stale    atomic.Uint64 // answers given past their end
	prefetch atomic.Uint64
	none     atomic.Uint64 // questions for which there was no upstream
	rejected atomic.Uint64 // too many waited
}

// upstreamCounts is the answers of an upstream, by code.
type upstreamCounts struct {
	durations [16][17]atomic.Uint64 // code, bucket
	nanos     [16]atomic.Uint64
	silent    atomic.Uint64 // questions without an answer
	unhealthy atomic.Uint64 // health checks without one
}

// observe counts an answer, or nil.
func (u *upstream) observe(m *dns.Msg, took time.Duration) {
	if m == nil {
		u.counts.silent.Add(1)
		return
	}
	code := m.Rcode & maskCode
	u.counts.durations[code][bucket(took)].Add(1)
	u.counts.nanos[code].Add(uint64(took))
}

var (
	descRequestsCache = prometheus.NewDesc("coredns_cache_requests_total", "Counter of cache requests.",
		[]string{"server", "zones", "view"}, nil)
	descPrefetch = prometheus.NewDesc("coredns_cache_prefetch_total", "Answers that were asked for again before their end.",
		[]string{"server", "zones", "view"}, nil)
	descStale = prometheus.NewDesc("coredns_cache_served_stale_total", "Questions answered past the answer's end.",
		[]string{"server", "zones", "view"}, nil)
	descEvicted = prometheus.NewDesc("podlane_dns_cache_evictions_total", "Answers that left a full cache.", nil, nil)
	descProxy   = prometheus.NewDesc("coredns_proxy_request_duration_seconds",
		"Histogram of the time an upstream took to answer.", []string{"proxy_name", "to", "rcode"}, nil)
	descUnhealthy = prometheus.NewDesc("coredns_proxy_healthcheck_failures_total",
		"Counter of the health checks that an upstream did not answer.", []string{"proxy_name", "to"}, nil)
	descBroken = prometheus.NewDesc("coredns_forward_healthcheck_broken_total",
		"Counter of the questions for which there was no usable upstream.", nil, nil)
	descRejects = prometheus.NewDesc("coredns_forward_max_concurrent_rejects_total",
		"Counter of the questions refused since too many waited.", nil, nil)
	descNoAnswer = prometheus.NewDesc("podlane_dns_upstream_silent_total",
		"Counter of the questions that an upstream did not answer.", []string{"upstream"}, nil)
	descUp = prometheus.NewDesc("podlane_dns_upstream_usable",
		"0 for an upstream that did not answer lately or that asks this server.", []string{"upstream"}, nil)
)

var forwardDescs = []*prometheus.Desc{descRequestsCache, descPrefetch, descStale, descEvicted,
	descProxy, descUnhealthy, descBroken, descRejects, descNoAnswer, descUp}

func counter(d *prometheus.Desc, v uint64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func gauge(d *prometheus.Desc, v int, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
}

// collect gives the counts of a Forwarder.
func (f *Forwarder) collect(ch chan<- prometheus.Metric) {
	hits := [2]uint64{f.cache.hits[0].Load(), f.cache.hits[1].Load()}
	misses := f.cache.misses.Load()
	entries, bytes := f.cache.size()
	for i, kind := range []string{"success", "denial"} {
		ch <- counter(descHits, hits[i], serverLabel, kind, ".", "")
	}
	ch <- counter(descMisses, misses, serverLabel, ".", "")
	ch <- counter(descRequestsCache, hits[0]+hits[1]+misses, serverLabel, ".", "")
	ch <- counter(descPrefetch, f.counts.prefetch.Load(), serverLabel, ".", "")
	ch <- counter(descStale, f.counts.stale.Load(), serverLabel, ".", "")
	ch <- counter(descEvicted, f.cache.evicted.Load())
	ch <- counter(descBroken, f.counts.none.Load())
	ch <- counter(descRejects, f.counts.rejected.Load())
	ch <- gauge(descEntries, entries)
	ch <- gauge(descBytes, bytes)
	for _, u := range f.routes.Load().all() {
		u.collect(ch)
	}
}

func (u *upstream) collect(ch chan<- prometheus.Metric) {
	to := u.addr.String()
	usable := !u.loops.Load() && time.Now().UnixNano()-u.failed.Load() >= int64(shunned)
	ch <- gauge(descUp, index(usable), to)
	ch <- counter(descUnhealthy, u.counts.unhealthy.Load(), "forward", to)
	ch <- counter(descNoAnswer, u.counts.silent.Load(), to)
	for code := range u.counts.durations {
		u.collectCode(ch, to, code)
	}
}

func (u *upstream) collectCode(ch chan<- prometheus.Metric, to string, code int) {
	cumulative, total := map[float64]uint64{}, uint64(0)
	for b := range u.counts.durations[code] {
		total += u.counts.durations[code][b].Load()
		if b < len(buckets) {
			cumulative[buckets[b]] = total
		}
	}
	if total > 0 {
		ch <- prometheus.MustNewConstHistogram(descProxy, total, float64(u.counts.nanos[code].Load())/1e9,
			cumulative, "forward", to, Code(code).String())
	}
}
