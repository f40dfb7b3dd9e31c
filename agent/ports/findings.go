package ports

import "github.com/prometheus/client_golang/prometheus"

// findings are what the agent's own looks for traps found, by doctor's ids.
type findings struct {
	counts func() map[[2]string]int
}

var findingsDesc = prometheus.NewDesc("podlane_doctor_findings",
	"What the last look found, by the ids of docs/doctor.md; none of an id where all is well. The agent looks every five minutes, at what costs little to look at.",
	[]string{"id", "severity"}, nil)

func (f findings) Describe(ch chan<- *prometheus.Desc) { ch <- findingsDesc }

func (f findings) Collect(ch chan<- prometheus.Metric) {
	for k, n := range f.counts() {
		ch <- prometheus.MustNewConstMetric(findingsDesc, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
}

// Findings adds podlane_doctor_findings, which counts reads by id and severity.
func (m *Metrics) Findings(counts func() map[[2]string]int) {
	m.registry.MustRegister(findings{counts})
}
