package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/plan"
)

var clusterChecks = []Check{
	{ID: "PL-040", Title: "a Node object cannot be used", Cluster: problems("Node")},
	{ID: "PL-041", Title: "two pods have one address", Cluster: twoPods},
	{ID: "PL-042", Title: "an object has something that cannot be used", Cluster: func(p *plan.Plan) []Finding {
		var list []Finding
		for _, pr := range problemsOf(p) {
			if pr.Kind != "Node" {
				list = append(list, Finding{Severity: Warn, Evidence: pr.String(), Mend: "kubectl edit the object"})
			}
		}
		return list
	}},
	{ID: "PL-043", Title: "two Services claim one address and port", Cluster: twoServices},
	{ID: "PL-044", Title: "a Service has no ready endpoint", Cluster: noEndpoint},
	{ID: "PL-045", Title: "the cluster has no DNS", Cluster: noDNS},
	{ID: "PL-046", Title: "a DNS server does not answer", Node: silentServer(false)},
	{ID: "PL-047", Title: "the cluster's DNS does not answer at its Service's address", Node: silentServer(true)},
	{ID: "PL-048", Title: "a pod on record is not a pod of the cluster, or has other addresses there", All: strangers},
}

func problems(kind string) func(*plan.Plan) []Finding {
	return func(p *plan.Plan) []Finding {
		var list []Finding
		for _, pr := range problemsOf(p) {
			if pr.Kind == kind {
				list = append(list, Finding{Evidence: pr.String(), Mend: "kubectl edit node " + pr.Key.Name})
			}
		}
		return list
	}
}

func twoPods(p *plan.Plan) []Finding {
	owners := map[netip.Addr][]string{}
	for _, k := range p.Snapshot.Pods.Keys() {
		pod := p.Snapshot.Pods.Get(k)
		if pod.HostNetwork || pod.Done {
			continue
		}
		for _, a := range pod.IPs {
			owners[a] = append(owners[a], k.String()+" on "+pod.Node)
		}
	}
	var list []Finding
	for a, who := range owners {
		if len(who) > 1 {
			list = append(list, Finding{Evidence: fmt.Sprintf("%s is that of %s", a, strings.Join(who, " and ")), Mend: "delete the pod that is not reached (podlane explain POD1 POD2 says which)"})
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.Evidence, b.Evidence) })
	return list
}

func twoServices(p *plan.Plan) []Finding {
	first := map[string]cluster.Key{}
	var list []Finding
	for _, k := range p.Table.Services.Keys() {
		for _, port := range p.Table.Services.Get(k).Ports {
			for _, f := range port.Frontends {
				at := fmt.Sprint(port.Protocol, " ", f.Addr)
				if had, taken := first[at]; taken && had != k {
					list = append(list, Finding{Evidence: fmt.Sprintf("%s is of Service %s, and Service %s wants it too", at, had, k), Mend: "kubectl delete one of them, or change its clusterIP or externalIPs"})
				} else {
					first[at] = k
				}
			}
		}
	}
	return list
}

func noEndpoint(p *plan.Plan) []Finding {
	var list []Finding
	for _, k := range p.Table.Services.Keys() {
		for _, port := range p.Table.Services.Get(k).Ports {
			if !port.Endpoints[0].Any && !port.Endpoints[1].Any {
				name := k.String()
				if port.Name != "" {
					name += ":" + port.Name
				}
				list = append(list, Finding{Severity: Info, Evidence: "Service " + name + " refuses connections", Mend: fmt.Sprintf("kubectl -n %s get endpointslices -l kubernetes.io/service-name=%s; are its pods Ready, and does the selector fit?", k.Namespace, k.Name)})
			}
		}
	}
	return list
}

var dnsService = cluster.Key{Namespace: "kube-system", Name: "kube-dns"}

func noDNS(p *plan.Plan) []Finding {
	s := p.Snapshot.Services.Get(dnsService)
	if s == nil || len(s.ClusterIPs) == 0 {
		return one(Fail, "kubectl -n kube-system logs deployment/podlane-dns-service -c service says why it was not made, kubectl -n kube-system rollout restart deployment/podlane-dns-service makes it; where there is no such Deployment, kubectl apply -f podlane.yaml", "there is no Service %s with a cluster IP: pods ask there", dnsService)
	}
	e := p.Table.Services.Get(dnsService)
	for i := 0; e != nil && i < len(e.Ports); i++ {
		if e.Ports[i].Protocol == cluster.UDP && !e.Ports[i].Endpoints[0].Any && !e.Ports[i].Endpoints[1].Any {
			return one(Fail, "kubectl -n kube-system get pods -l k8s-app=kube-dns", "Service %s has no endpoint that could answer", dnsService)
		}
	}
	return nil
}

func silentServer(service bool) func(*observe.Exam) []Finding {
	return func(e *observe.Exam) []Finding {
		var list []Finding
		for _, q := range e.Queries {
			if q.OK || (q.Service != "") != service {
				continue
			}
			mend := fmt.Sprintf("kubectl -n kube-system get pods -o wide | grep %s; look at its log, then podlane explain node/%s %s --protocol udp --verify", q.Server.Addr(), e.Node, q.Server)
			list = append(list, Finding{Evidence: fmt.Sprintf("%s, asked from node %s: %s", q.Server, e.Node, q.Error), Mend: mend})
		}
		return list
	}
}

// strangers needs the cluster's pods, which the exam of a node with few rights may
// lack: then it finds nothing.
func strangers(exams []*observe.Exam) []Finding {
	var list []Finding
	for _, e := range exams {
		for _, s := range e.Strangers {
			list = append(list, Finding{Severity: Warn, Node: e.Node, Evidence: s, Mend: "the agent collects it when its link is gone; a pod with another address must be deleted"})
		}
	}
	return list
}
