package ports

import "github.com/prometheus/client_golang/prometheus"

// fastPath is how many packets between pods took the fast path, or why not.
type fastPath struct {
	counts func() (map[string]uint64, error)
}

var fastPathDesc = prometheus.NewDesc("podlane_fastpath_packets_total",
	"Packets that the fast path's programs have seen: shortcut_* took it, pass_* took the normal path, and why.", []string{"reason"}, nil)

func (c fastPath) Describe(ch chan<- *prometheus.Desc) { ch <- fastPathDesc }

func (c fastPath) Collect(ch chan<- prometheus.Metric) {
	counts, err := c.counts()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(fastPathDesc, err)
		return
	}
	for reason, n := range counts {
		ch <- prometheus.MustNewConstMetric(fastPathDesc, prometheus.CounterValue, float64(n), reason)
	}
}

// FastPath adds the fast path's counters, which counts reads; nil where it is off.
func (m *Metrics) FastPath(counts func() (map[string]uint64, error)) {
	m.registry.MustRegister(fastPath{counts})
}
