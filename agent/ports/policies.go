package ports

import "github.com/prometheus/client_golang/prometheus"

// Policies registers podlane_networkpolicies_not_enforced.
func (m *Metrics) Policies(count func() int) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "podlane_networkpolicies_not_enforced",
		Help: "NetworkPolicies of the cluster. Podlane does not enforce them yet.",
	}, func() float64 { return float64(count()) }))
}
