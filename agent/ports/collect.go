package ports

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// What is read when it is asked for.

// flowTable is how full the kernel's flow table is.
type flowTable struct {
	level func() (count, most int, err error)
}

var (
	flowsDesc    = prometheus.NewDesc("podlane_conntrack_flows", "Flows that the kernel tracks.", nil, nil)
	maxFlowsDesc = prometheus.NewDesc("podlane_conntrack_flows_max", "Flows that the kernel can track; new ones are dropped when it is reached. 0 is no limit.", nil, nil)
)

func (c flowTable) Describe(ch chan<- *prometheus.Desc) { ch <- flowsDesc; ch <- maxFlowsDesc }

func (c flowTable) Collect(ch chan<- prometheus.Metric) {
	count, most, err := c.level()
	if err != nil {
		return // no flow table in this namespace
	}
	ch <- prometheus.MustNewConstMetric(flowsDesc, prometheus.GaugeValue, float64(count))
	ch <- prometheus.MustNewConstMetric(maxFlowsDesc, prometheus.GaugeValue, float64(most))
}

// localPolicies counts the ports that drop clients because no endpoint is on this
// node.
type localPolicies struct{ table func() *proxy.Table }

var noLocalDesc = prometheus.NewDesc("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
	"Service ports with a Local traffic policy and endpoints, of which none is on this node.", []string{"ip_family", "traffic_policy"}, nil)

func (c localPolicies) Describe(ch chan<- *prometheus.Desc) { ch <- noLocalDesc }

func (c localPolicies) Collect(ch chan<- prometheus.Metric) {
	var internal, external [2]int
	if t := c.table(); t != nil {
		for _, e := range t.Services.All() {
			for i := range e.Ports {
				noLocal(&e.Ports[i], &internal, &external)
			}
		}
	}
	for i, f := range families {
		ch <- prometheus.MustNewConstMetric(noLocalDesc, prometheus.GaugeValue, float64(internal[i]), f, "internal")
		ch <- prometheus.MustNewConstMetric(noLocalDesc, prometheus.GaugeValue, float64(external[i]), f, "external")
	}
}

func noLocal(p *proxy.Port, internal, external *[2]int) {
	for i, es := range p.Endpoints {
		if !es.Any || len(es.Local) > 0 {
			continue
		}
		if p.InternalLocal {
			internal[i]++
		}
		if p.ExternalLocal {
			external[i]++
		}
	}
}

// ServiceCount is the kernel's counter of one frontend, or one endpoint, of a
// Service's port.
type ServiceCount struct {
	Service  cluster.Key
	Port     string // its name, "" where it has none
	Protocol string // "TCP", ...
	Address  string // address:port
	New      uint64
}

// ReadCounts reads the kernel's counters: of all frontends, and of the endpoints of
// the Services that ask for it.
type ReadCounts func() (frontends, endpoints []ServiceCount, err error)

// newFlows are the kernel's counters.
type newFlows struct{ read ReadCounts }

var (
	newFlowsDesc = prometheus.NewDesc("podlane_service_new_flows_total",
		"New flows to a frontend of a Service, counted by the kernel.",
		[]string{"namespace", "service", "port", "protocol", "frontend"}, nil)
	endpointFlowsDesc = prometheus.NewDesc("podlane_endpoint_new_flows_total",
		"New flows to an endpoint of a Service with the annotation podlane.dev/count-endpoints, counted by the kernel.",
		[]string{"namespace", "service", "port", "protocol", "endpoint"}, nil)
)

func (c newFlows) Describe(ch chan<- *prometheus.Desc) { ch <- newFlowsDesc; ch <- endpointFlowsDesc }

func (c newFlows) Collect(ch chan<- prometheus.Metric) {
	frontends, endpoints, err := c.read()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(newFlowsDesc, err)
		return
	}
	give := func(desc *prometheus.Desc, counts []ServiceCount) {
		for _, n := range counts {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n.New),
				n.Service.Namespace, n.Service.Name, n.Port, n.Protocol, n.Address)
		}
	}
	give(newFlowsDesc, frontends)
	give(endpointFlowsDesc, endpoints)
}
