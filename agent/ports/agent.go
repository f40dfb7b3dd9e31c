package ports

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Figures are what the agent says of itself after each turn of its loop.
type Figures struct {
	Ready    bool // the node can serve pods, and all is applied
	Pods     int
	Nodes    int
	Problems int
	Ways     map[string]int // "direct", "vxlan", "none" → networks of other nodes' pods
	Probes   map[string]int // "arrives", "lost", "unknown" → probes on those
}

var (
	readyDesc    = prometheus.NewDesc("podlane_ready", "1 where the node can serve pods and all that is wanted is in the kernel.", nil, nil)
	podsDesc     = prometheus.NewDesc("podlane_pods", "Pods of this node that Podlane has wired.", nil, nil)
	nodesDesc    = prometheus.NewDesc("podlane_nodes", "Nodes of the cluster that the agent knows.", nil, nil)
	problemsDesc = prometheus.NewDesc("podlane_problems", "Problems that podlane status names.", nil, nil)
	waysDesc     = prometheus.NewDesc("podlane_peer_networks", "Pod networks of other nodes, by the way that packets take to them.", []string{"way"}, nil)
	probesDesc   = prometheus.NewDesc("podlane_peer_probes", "The same, by what became of the last probes.", []string{"result"}, nil)
	droppedDesc  = prometheus.NewDesc("podlane_guard_dropped_packets_total", "Packets that were not what they seemed to be, by reason (docs/security.md).", []string{"reason"}, nil)
)

// ofAgent collects what the agent says.
type ofAgent struct {
	figures func() *Figures
	dropped func() (map[string]uint64, error)
}

func (c ofAgent) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{readyDesc, podsDesc, nodesDesc, problemsDesc, waysDesc, probesDesc, droppedDesc} {
		ch <- d
	}
}

func (c ofAgent) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	f := c.figures()
	if f == nil {
		gauge(readyDesc, 0)
		return
	}
	ready := 0
	if f.Ready {
		ready = 1
	}
	gauge(readyDesc, ready)
	gauge(podsDesc, f.Pods)
	gauge(nodesDesc, f.Nodes)
	gauge(problemsDesc, f.Problems)
	for way, n := range f.Ways {
		gauge(waysDesc, n, way)
	}
	for result, n := range f.Probes {
		gauge(probesDesc, n, result)
	}
	counts, err := c.dropped()
	if err != nil {
		return // no table yet
	}
	for reason, n := range counts {
		ch <- prometheus.MustNewConstMetric(droppedDesc, prometheus.CounterValue, float64(n), reason)
	}
}

// Agent adds the agent's own figures, and what its guard has dropped.
func (m *Metrics) Agent(figures func() *Figures, dropped func() (map[string]uint64, error)) {
	m.registry.MustRegister(ofAgent{figures, dropped})
}

// scrapes is how many may be answered at once: each reads the kernel's tables.
const scrapes = 2

// Handler answers a scrape. What is too much at once is refused.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: scrapes})
}
