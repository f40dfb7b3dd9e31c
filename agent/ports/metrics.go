package ports

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Metrics are the figures of a node's service proxy. Those named kubeproxy_ have
// the names, labels and buckets of kube-proxy's.
type Metrics struct {
	registry *prometheus.Registry

	syncs, programming, reconciles      *prometheus.HistogramVec
	lastSync, lastQueued                *prometheus.GaugeVec
	serviceChanges, endpointChanges     prometheus.Counter
	staleDeleted, healthz, livez, stale *prometheus.CounterVec
	parts                               *prometheus.CounterVec
	failures                            prometheus.Counter
}

// NewMetrics makes the figures. level reads how full the flow table is; table
// gives the newest Table, or nil; counts reads the kernel's counters of new flows.
func NewMetrics(level func() (count, most int, err error), table func() *proxy.Table, counts ReadCounts) *Metrics {
	doubling := prometheus.ExponentialBuckets(0.001, 2, 15)
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "kubeproxy", Name: name, Help: help, Buckets: buckets}, []string{"ip_family"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "kubeproxy", Name: name, Help: help}, []string{"ip_family"})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "kubeproxy", Name: name, Help: help})
	}
	vector := func(space, name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: space, Name: name, Help: help}, labels)
	}
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		syncs: histogram("sync_proxy_rules_duration_seconds",
			"How long it took to bring a change of Services to the kernel. Both families are brought together, and each has the whole time.", doubling),
		programming: histogram("network_programming_duration_seconds",
			"From when an endpoint changed, as the API server's side noted it, to when the kernel had the change.", programmingBuckets()),
		reconciles:      histogram("conntrack_reconciler_sync_duration_seconds", "How long it took to look at all UDP flows.", doubling),
		lastSync:        gauge("sync_proxy_rules_last_timestamp_seconds", "When the kernel last had all that was known."),
		lastQueued:      gauge("sync_proxy_rules_last_queued_timestamp_seconds", "When the last change came."),
		serviceChanges:  counter("sync_proxy_rules_service_changes_total", "Changes of Services."),
		endpointChanges: counter("sync_proxy_rules_endpoint_changes_total", "Changes of Services' endpoints."),
		staleDeleted:    vector("kubeproxy", "conntrack_reconciler_deleted_entries_total", "Stale UDP flows deleted.", "ip_family"),
		stale:           vector("podlane", "stale_flows_deleted_total", "Stale UDP flows deleted, by the Service they were to.", "namespace", "service"),
		healthz:         vector("kubeproxy", "proxy_healthz_total", "Answers of /healthz.", "code"),
		livez:           vector("kubeproxy", "proxy_livez_total", "Answers of /livez.", "code"),
		parts:           vector("podlane", "bpf_failures_total", "Times that the fast path or the translation at sockets could not be brought to what is wanted and was tried again.", "part"),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "podlane", Name: "proxy_failures_total",
			Help: "Times that a change could not be brought to the kernel and was tried again."}),
	}
	for _, part := range []string{"fast-path", "socket-lb"} {
		m.parts.WithLabelValues(part).Add(0) // a rate has a start
	}
	m.registry.MustRegister(m.syncs, m.programming, m.reconciles, m.lastSync, m.lastQueued, m.serviceChanges, m.endpointChanges,
		m.staleDeleted, m.stale, m.healthz, m.livez, m.failures, m.parts,
		flowTable{level}, localPolicies{table}, newFlows{counts},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// programmingBuckets are kube-proxy's.
func programmingBuckets() []float64 {
	b := []float64{0.25, 0.5}
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

// Queued counts what a new Snapshot brought.
func (m *Metrics) Queued(services, endpoints int) {
	m.serviceChanges.Add(float64(services))
	m.endpointChanges.Add(float64(endpoints))
	now := float64(time.Now().UnixNano()) / 1e9
	for _, f := range families {
		m.lastQueued.WithLabelValues(f).Set(now)
	}
}

// Synced says that the kernel has all that is known, after took; triggered are
// when the changes that were brought happened.
func (m *Metrics) Synced(took time.Duration, triggered []time.Time) {
	now := time.Now()
	for _, f := range families {
		m.syncs.WithLabelValues(f).Observe(took.Seconds())
		m.lastSync.WithLabelValues(f).Set(float64(now.UnixNano()) / 1e9)
		for _, t := range triggered {
			m.programming.WithLabelValues(f).Observe(now.Sub(t).Seconds())
		}
	}
}

// Failed counts a change that could not be brought to the kernel.
func (m *Metrics) Failed() { m.failures.Inc() }

// Reconciled says that all UDP flows of a family were looked at, and how many were
// deleted for each Service.
func (m *Metrics) Reconciled(v6 bool, took time.Duration, deleted map[cluster.Key]int) {
	f := families[proxy.Family(v6)]
	m.reconciles.WithLabelValues(f).Observe(took.Seconds())
	for k, n := range deleted {
		m.staleDeleted.WithLabelValues(f).Add(float64(n))
		m.stale.WithLabelValues(k.Namespace, k.Name).Add(float64(n))
	}
}

// PartFailed counts a try of the fast path ("fast-path") or of the translation at
// sockets ("socket-lb") that is made again.
func (m *Metrics) PartFailed(part string) { m.parts.WithLabelValues(part).Inc() }

func (m *Metrics) countHealthz(code string) { m.healthz.WithLabelValues(code).Inc() }
func (m *Metrics) countLivez(code string)   { m.livez.WithLabelValues(code).Inc() }
