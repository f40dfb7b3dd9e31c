//go:build oraclefault

package proxy

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// Fault is the fault in force, one of Faults or "" for none. It is for tests that
// must find it (test/oracle).
var Fault string

// fault is a seeded fault: it changes what compileService is given, or what it
// makes.
type fault struct {
	name  string
	given func(*cluster.Service, *cluster.ServiceSlices, *facts)
	port  func(*cluster.Service, []endpoint, *Port, facts)
}

// Faults are the names of the faults that there are.
func Faults() []string {
	var names []string
	for _, f := range faults {
		names = append(names, f.name)
	}
	return names
}

var faults = []fault{
	{name: "terminating endpoints are no fallback", given: func(_ *cluster.Service, of *cluster.ServiceSlices, _ *facts) {
		each(of, func(e *cluster.Endpoint) { e.Serving = e.Serving && !e.Terminating })
	}},
	{name: "terminating endpoints beside ready ones", given: func(_ *cluster.Service, of *cluster.ServiceSlices, _ *facts) {
		each(of, func(e *cluster.Endpoint) { e.Ready = e.Ready || e.Serving && e.Terminating })
	}},
	{name: "a hint that is missing is taken for ours", given: func(_ *cluster.Service, of *cluster.ServiceSlices, f *facts) {
		each(of, func(e *cluster.Endpoint) {
			if len(e.ZoneHints) == 0 {
				e.ZoneHints = []string{f.zone}
			}
		})
	}},
	{name: "node hints are not read", given: func(_ *cluster.Service, of *cluster.ServiceSlices, _ *facts) {
		each(of, func(e *cluster.Endpoint) { e.NodeHints = nil })
	}},
	{name: "the node's zone is not read", given: func(_ *cluster.Service, _ *cluster.ServiceSlices, f *facts) { f.zone = "" }},
	{name: "only the first slice counts", given: func(_ *cluster.Service, of *cluster.ServiceSlices, _ *facts) {
		first := map[bool]bool{}
		for _, s := range of.Slices {
			if first[s.IPv6] {
				s.Endpoints = nil
			}
			first[s.IPv6] = true
		}
	}},
	{name: "internal policy ignored", given: func(s *cluster.Service, _ *cluster.ServiceSlices, _ *facts) { s.InternalLocal = false }},
	{name: "topology hints for the policy Local too", port: func(_ *cluster.Service, all []endpoint, p *Port, f facts) {
		hinted := hints(all, f.node, f.zone)
		for i := range p.Endpoints {
			p.Endpoints[i].Local = slices.DeleteFunc(p.Endpoints[i].Local, func(to netip.AddrPort) bool {
				return slices.ContainsFunc(all, func(e endpoint) bool { return e.to == to && e.Ready && !hinted(e) })
			})
		}
	}},
	{name: "refused where only this node has no endpoint", port: func(_ *cluster.Service, _ []endpoint, p *Port, _ facts) {
		for i := range p.Endpoints {
			e := &p.Endpoints[i]
			e.Any = e.Any && len(e.Local)+len(e.Cluster) > 0 && (len(e.Local) > 0 || !p.InternalLocal && !p.ExternalLocal)
		}
	}},
	{name: "source ranges for external IPs too", port: func(_ *cluster.Service, _ []endpoint, p *Port, _ facts) {
		var sources [2][]netip.Prefix
		for _, f := range p.Frontends {
			sources[Family(f.Addr.Addr().Is6())] = append(sources[Family(f.Addr.Addr().Is6())], f.Sources...)
		}
		for i := range p.Frontends {
			if f := &p.Frontends[i]; f.Kind == ExternalIP {
				f.Sources = sources[Family(f.Addr.Addr().Is6())]
			}
		}
	}},
	{name: "no range for the node's own load balancer address", given: func(_ *cluster.Service, _ *cluster.ServiceSlices, f *facts) { f.addrs = nil }},
	{name: "an endpoint with hostNetwork left out", port: func(_ *cluster.Service, _ []endpoint, p *Port, f facts) {
		for i := range p.Endpoints {
			own := func(a netip.AddrPort) bool { return slices.Contains(f.addrs, a.Addr()) }
			p.Endpoints[i].Cluster = slices.DeleteFunc(p.Endpoints[i].Cluster, own)
			p.Endpoints[i].Local = slices.DeleteFunc(p.Endpoints[i].Local, own)
		}
	}},
	{name: "the NodePort of TCP for UDP too", port: func(_ *cluster.Service, _ []endpoint, p *Port, _ facts) {
		p.Frontends = slices.DeleteFunc(p.Frontends, func(f Frontend) bool { return f.Kind == NodePort && p.Protocol == cluster.UDP })
	}},
	{name: "affinity lost", given: func(s *cluster.Service, _ *cluster.ServiceSlices, _ *facts) { s.Affinity = 0 }},
	{name: "the second address family has the endpoints of the first", port: func(s *cluster.Service, _ []endpoint, p *Port, _ facts) {
		if len(s.ClusterIPs) == 2 {
			p.Endpoints[1] = Endpoints{Any: p.Endpoints[0].Any}
		}
	}},
}

func each(of *cluster.ServiceSlices, f func(*cluster.Endpoint)) {
	for _, s := range of.Slices {
		for i := range s.Endpoints {
			f(&s.Endpoints[i])
		}
	}
}

// compileEntry is compileService with the fault.
func compileEntry(s *cluster.Service, of *cluster.ServiceSlices, f facts) *Entry {
	at := slices.IndexFunc(faults, func(o fault) bool { return o.name == Fault })
	if at < 0 || s == nil {
		return compileService(s, of, f)
	}
	bad := faults[at]
	service, slicesOf := *s, clone(of)
	if bad.given != nil {
		bad.given(&service, slicesOf, &f)
	}
	e := compileService(&service, slicesOf, f)
	if e == nil || bad.port == nil {
		return e
	}
	for i := range e.Ports {
		p := &e.Ports[i]
		at := slices.IndexFunc(s.Ports, func(sp cluster.ServicePort) bool { return sp.Name == p.Name && sp.Protocol == p.Protocol })
		all := append(gather(of, s.Ports[at], false, f.node), gather(of, s.Ports[at], true, f.node)...)
		bad.port(s, all, p, f)
	}
	return e
}

// clone copies slices as deep as faults change them.
func clone(of *cluster.ServiceSlices) *cluster.ServiceSlices {
	out := &cluster.ServiceSlices{}
	if of == nil {
		return out
	}
	for _, s := range of.Slices {
		c := *s
		c.Endpoints = slices.Clone(s.Endpoints)
		out.Slices = append(out.Slices, &c)
	}
	return out
}
