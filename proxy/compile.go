package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// CompileAll makes the Table of a Snapshot from nothing. It is the reference:
// Compile gives an equal Table, sooner.
func CompileAll(s *cluster.Snapshot) *Table { return Compile(&Table{}, &cluster.Snapshot{}, s) }

// Compile makes the Table of now, given the Table of old. Its cost grows with
// what changed between the two Snapshots, not with their size.
func Compile(prev *Table, old, now *cluster.Snapshot) *Table {
	dirty := map[cluster.Key]bool{}
	for c := range now.Services.Changed(old.Services) {
		dirty[c.Key] = true
	}
	for c := range now.Endpoints.Changed(old.Endpoints) {
		dirty[c.Key] = true
	}
	set := map[cluster.Key]*Entry{}
	for k := range dirty {
		e, was := compileService(now.Services.Get(k), now.Endpoints.Get(k)), prev.Services.Get(k)
		if !equal(e, was) {
			set[k] = e
		}
	}
	if len(set) == 0 {
		return prev
	}
	return &Table{Services: prev.Services.With(set)}
}

// proxied says whether a Service is ours to serve. A Service without a cluster IP
// has nothing to translate; of type ExternalName it may keep an old one for a
// while, which no longer counts.
func proxied(s *cluster.Service) bool {
	return s != nil && s.Type != cluster.ExternalName && !s.Headless && s.ProxyName == "" && len(s.ClusterIPs) > 0
}

func compileService(s *cluster.Service, of *cluster.ServiceSlices) *Entry {
	if !proxied(s) {
		return nil
	}
	e := &Entry{Key: s.Key}
	for _, sp := range s.Ports {
		p := Port{Name: sp.Name, Protocol: sp.Protocol}
		for _, ip := range s.ClusterIPs {
			p.Frontends = append(p.Frontends, netip.AddrPortFrom(ip, sp.Port))
		}
		slices.SortFunc(p.Frontends, netip.AddrPort.Compare)
		p.Backends4 = backends(of, sp, false)
		p.Backends6 = backends(of, sp, true)
		e.Ports = append(e.Ports, p)
	}
	slices.SortFunc(e.Ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
	})
	return e
}

// backends are the endpoints of one port in one family: the ready ones, or where
// there is none, those that still serve while they end (KEP-1669).
func backends(of *cluster.ServiceSlices, sp cluster.ServicePort, v6 bool) []netip.AddrPort {
	if ready := choose(of, sp, v6, func(e cluster.Endpoint) bool { return e.Ready }); len(ready) > 0 {
		return ready
	}
	return choose(of, sp, v6, func(e cluster.Endpoint) bool { return e.Serving && e.Terminating })
}

func choose(of *cluster.ServiceSlices, sp cluster.ServicePort, v6 bool, want func(cluster.Endpoint) bool) []netip.AddrPort {
	if of == nil {
		return nil
	}
	var to []netip.AddrPort
	for _, slice := range of.Slices {
		if slice.IPv6 != v6 || slice.Headless {
			continue
		}
		for _, port := range slice.Ports {
			if port.Name != sp.Name || port.Protocol != sp.Protocol {
				continue
			}
			for _, e := range slice.Endpoints {
				if want(e) {
					to = append(to, netip.AddrPortFrom(e.Address, port.Port))
				}
			}
		}
	}
	slices.SortFunc(to, netip.AddrPort.Compare)
	return slices.Compact(to)
}

func equal(a, b *Entry) bool {
	if a == nil || b == nil {
		return a == b
	}
	return slices.EqualFunc(a.Ports, b.Ports, func(a, b Port) bool {
		return a.Name == b.Name && a.Protocol == b.Protocol && slices.Equal(a.Frontends, b.Frontends) &&
			slices.Equal(a.Backends4, b.Backends4) && slices.Equal(a.Backends6, b.Backends6)
	})
}
