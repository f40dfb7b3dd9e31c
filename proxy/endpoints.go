package proxy

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// endpoint is an endpoint of one port in one family.
type endpoint struct {
	*cluster.Endpoint
	to    netip.AddrPort
	local bool
}

// leaving says that the endpoint is no longer ready, but serves while it ends
// (KEP-1669).
func (e endpoint) leaving() bool { return e.Serving && e.Terminating }

// gather gives the endpoints of one port in one family: of all slices that have
// a port of its name and protocol, whatever the number. An address and port that
// comes twice, since an endpoint moves between slices or a pod's address is in
// use again, is taken once: rather one that is not terminating, rather a ready
// one.
func gather(of *cluster.ServiceSlices, sp cluster.ServicePort, v6 bool, node string) []endpoint {
	if of == nil {
		return nil
	}
	most := 0
	for _, s := range of.Slices {
		most += len(s.Endpoints)
	}
	all := make([]endpoint, 0, most)
	for _, s := range of.Slices {
		if s.IPv6 != v6 || s.Headless {
			continue
		}
		for _, port := range s.Ports {
			if port.Name != sp.Name || port.Protocol != sp.Protocol {
				continue
			}
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				all = append(all, endpoint{e, netip.AddrPortFrom(e.Address, port.Port), e.Node == node && node != ""})
			}
		}
	}
	order := func(a, b endpoint) int {
		if c := a.to.Compare(b.to); c != 0 {
			return c
		}
		return rank(a) - rank(b)
	}
	if !slices.IsSortedFunc(all, order) {
		slices.SortStableFunc(all, order)
	}
	return slices.CompactFunc(all, func(a, b endpoint) bool { return a.to == b.to })
}

func rank(e endpoint) int {
	switch {
	case e.Ready && !e.Terminating:
		return 0
	case !e.Terminating:
		return 1
	case e.Ready:
		return 2
	case e.Serving:
		return 3
	}
	return 4
}

// answering leaves the silent endpoints of this node out, unless no other one is
// ready: one that may hang is better than none.
func answering(all []endpoint, silent []netip.Addr) []endpoint {
	hangs := func(e endpoint) bool { return e.local && slices.Contains(silent, e.to.Addr()) }
	if !slices.ContainsFunc(all, hangs) || !slices.ContainsFunc(all, func(e endpoint) bool { return e.Ready && !hangs(e) }) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), hangs)
}

// LocalReady gives where the ready endpoints of a Service's port are on a node, in
// both families.
func LocalReady(s *cluster.Snapshot, k cluster.Key, protocol cluster.Protocol, port uint16, node string) []netip.AddrPort {
	svc := s.Services.Get(k)
	if svc == nil {
		return nil
	}
	var out []netip.AddrPort
	for _, sp := range svc.Ports {
		if sp.Protocol != protocol || sp.Port != port {
			continue
		}
		for _, ip := range svc.ClusterIPs {
			out = append(out, pick(gather(s.Endpoints.Get(k), sp, ip.Is6(), node), func(e endpoint) bool { return e.local && e.Ready })...)
		}
	}
	return out
}

// choose makes the lists that the traffic policies ask for. It has the semantics
// of Kubernetes' CategorizeEndpoints (pkg/proxy/topology.go, 1.36): each list is
// of ready endpoints, or where there is none, of those that serve while they
// end; topology hints concern ready endpoints and the policy Cluster alone.
func choose(all []endpoint, useCluster, useLocal bool, node, zone string) Endpoints {
	var out Endpoints
	out.Any = slices.ContainsFunc(all, func(e endpoint) bool { return e.Ready || e.leaving() })
	if useCluster {
		hinted := hints(all, node, zone)
		out.Cluster = pick(all, func(e endpoint) bool { return e.Ready && hinted(e) })
		if len(out.Cluster) == 0 {
			out.Cluster = pick(all, endpoint.leaving)
		}
	}
	if useLocal {
		out.Local = pick(all, func(e endpoint) bool { return e.local && e.Ready })
		if len(out.Local) == 0 {
			out.Local = pick(all, func(e endpoint) bool { return e.local && e.leaving() })
		}
	}
	return out
}

func pick(all []endpoint, want func(endpoint) bool) []netip.AddrPort {
	n := 0
	for _, e := range all {
		if want(e) {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	to := make([]netip.AddrPort, 0, n)
	for _, e := range all {
		if want(e) {
			to = append(to, e.to)
		}
	}
	return to
}

// hints gives which endpoints the topology hints leave: those for this node, if
// every ready endpoint has node hints and one is for this node; else those for
// its zone, likewise; else all.
func hints(all []endpoint, node, zone string) func(endpoint) bool {
	forNode := func(e endpoint) bool { return slices.Contains(e.NodeHints, node) }
	forZone := func(e endpoint) bool { return slices.Contains(e.ZoneHints, zone) }
	nodes, zones, here, near := true, true, false, false
	for _, e := range all {
		if !e.Ready {
			continue
		}
		nodes, here = nodes && len(e.NodeHints) > 0, here || forNode(e)
		zones, near = zones && len(e.ZoneHints) > 0, near || forZone(e)
	}
	switch {
	case nodes && here:
		return forNode
	case zones && near:
		return forZone
	}
	return func(endpoint) bool { return true }
}
