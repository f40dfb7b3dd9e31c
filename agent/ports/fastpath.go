package ports

import "github.com/prometheus/client_golang/prometheus"

// byReason are counters of eBPF programs, each with a reason.
type byReason struct {
	desc   *prometheus.Desc
	counts func() (map[string]uint64, error)
}

var fastPathDesc = prometheus.NewDesc("podlane_fastpath_packets_total",
	"Packets that the fast path's programs have seen: shortcut_* took it, pass_* took the normal path, and why.", []string{"reason"}, nil)

var socketsDesc = prometheus.NewDesc("podlane_socket_connections_total",
	"Connections of pods and of others in their cgroup, by TCP: translated at the socket, or pass_* left to the rules, and why.", []string{"reason"}, nil)

func (c byReason) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c byReason) Collect(ch chan<- prometheus.Metric) {
	counts, err := c.counts()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.desc, err)
		return
	}
	for reason, n := range counts {
		ch <- prometheus.MustNewConstMetric(c.desc, prometheus.CounterValue, float64(n), reason)
	}
}

// FastPath adds the counters of the fast path and of the translation at sockets, which
// these read; nil where it is off.
func (m *Metrics) FastPath(packets, connections func() (map[string]uint64, error)) {
	m.registry.MustRegister(byReason{fastPathDesc, packets}, byReason{socketsDesc, connections})
}
