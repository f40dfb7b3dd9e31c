package observe

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/plan"
)

// PeerPing is a Ping to another node.
type PeerPing struct {
	Peer  string `json:"peer"`
	Layer string `json:"layer"` // underlay, to the node's address; overlay, to a pod of it
	Full  bool   `json:"full"`  // of the longest packet that should pass
	Ping
}

// maxPeers bounds the other nodes that are tried from one node.
const maxPeers = 50

// targets lists what Try is to try.
func (e *Exam) targets(p *plan.Plan) {
	own := p.Snapshot.Nodes.Get(cluster.Key{Name: p.Node})
	for i, k := range p.Snapshot.Nodes.Keys() {
		peer := p.Snapshot.Nodes.Get(k)
		if k.Name == p.Node || i >= maxPeers || own == nil {
			continue
		}
		for _, v6 := range []bool{false, true} {
			if a := peer.Address(v6); a.IsValid() && own.Address(v6).IsValid() {
				e.pings(k.Name, "underlay", a, e.Underlay.MTU)
			}
			if a := podOn(p.Snapshot, k.Name, v6); a.IsValid() && hasFamily(own.PodCIDRs, v6) {
				e.pings(k.Name, "overlay", a, e.PodMTU)
			}
		}
	}
	e.servers(p.Snapshot)
}

func hasFamily(list []netip.Prefix, v6 bool) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
}

func (e *Exam) pings(peer, layer string, to netip.Addr, full int) {
	e.Pings = append(e.Pings, PeerPing{Peer: peer, Layer: layer, Ping: Ping{To: to}},
		PeerPing{Peer: peer, Layer: layer, Full: true, Ping: Ping{To: to, Size: full}})
}

// podOn gives the address of a ready pod of a node.
func podOn(s *cluster.Snapshot, node string, v6 bool) netip.Addr {
	for _, k := range s.Pods.Keys() {
		p := s.Pods.Get(k)
		for _, a := range p.IPs {
			if p.Node == node && p.Ready && !p.HostNetwork && !p.Done && a.Is6() == v6 {
				return a
			}
		}
	}
	if s.Pods.Len() > 0 && slices.ContainsFunc(s.Pods.Keys(), func(k cluster.Key) bool { return s.Pods.Get(k).Node == node }) {
		return netip.Addr{}
	}
	n := s.Nodes.Get(cluster.Key{Name: node})
	for _, k := range s.Slices.Keys() {
		for _, ep := range s.Slices.Get(k).Endpoints {
			if ep.Node == node && ep.Ready && ep.Address.Is6() == v6 && n != nil && !slices.Contains(n.Addresses, ep.Address) {
				return ep.Address
			}
		}
	}
	return netip.Addr{}
}

// servers lists the DNS servers of the cluster: each alone, then by the Service.
func (e *Exam) servers(s *cluster.Snapshot) {
	k := cluster.Key{Namespace: "kube-system", Name: "kube-dns"}
	svc, of := s.Services.Get(k), s.Endpoints.Get(k)
	if svc == nil || of == nil || len(svc.ClusterIPs) == 0 {
		return
	}
	const name = "kubernetes.default.svc.cluster.local"
	for _, slice := range of.Slices {
		for _, port := range slice.Ports {
			for _, ep := range slice.Endpoints {
				if port.Protocol == cluster.UDP && ep.Ready {
					e.Queries = append(e.Queries, Query{Server: netip.AddrPortFrom(ep.Address, port.Port), Name: name})
				}
			}
		}
	}
	for _, a := range svc.ClusterIPs {
		e.Queries = append(e.Queries, Query{Server: netip.AddrPortFrom(a, 53), Name: name, Service: k.String()})
	}
}

// Try sends the echoes and queries, from the calling process's network namespace.
// Where it has no right to send ICMP, as in the agent's container, what the agent
// found counts.
func (e *Exam) Try(ctx context.Context) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, 16)
	run := func(f func()) {
		slots <- struct{}{}
		wait.Go(func() { f(); <-slots })
	}
	for i := range e.Pings {
		run(func() { e.Pings[i].Do(ctx, uint16(i)) })
	}
	for i := range e.Queries {
		run(func() { e.Queries[i].Do(ctx) })
	}
	wait.Wait()
	if slices.ContainsFunc(e.Pings, func(p PeerPing) bool { return p.Denied }) && len(e.Echoes) > 0 {
		e.Pings = e.Echoes
	}
}
