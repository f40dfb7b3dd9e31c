package agent

import (
	"context"
	"log/slog"
	"net/netip"

	"github.com/podlane/podlane/agent/dnsprobe"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// dnsPort is that of the DNS Service.
const dnsPort = 53

// localDNS asks the servers of the cluster's DNS that are on this node, and says
// which do not answer: the proxy leads past those. Its fields belong to the
// goroutine of Run.
type localDNS struct {
	service cluster.Key // the cluster's DNS; zero: nothing is asked
	prober  *dnsprobe.Prober
	seen    [2]any // what the servers were taken from
	silent  []netip.Addr
}

func newLocalDNS(service cluster.Key, log *slog.Logger) *localDNS {
	return &localDNS{service: service, prober: dnsprobe.New(log)}
}

func (d *localDNS) run(ctx context.Context) error {
	if d.service == (cluster.Key{}) {
		return nil
	}
	return d.prober.Run(ctx)
}

// follow tells the prober whom to ask.
func (d *localDNS) follow(s *cluster.Snapshot, node string) {
	now := [2]any{s.Services.Get(d.service), s.Endpoints.Get(d.service)}
	if now != d.seen {
		d.seen = now
		d.prober.Watch(proxy.LocalReady(s, d.service, cluster.UDP, dnsPort, node))
	}
}

func (d *localDNS) facts() proxy.Silent {
	return proxy.Silent{Service: d.service, Addrs: d.silent}
}

// DNSStatus is what the agent knows of the cluster's DNS.
type DNSStatus struct {
	Service string       `json:"service"`
	Addrs   []netip.Addr `json:"addrs"` // cluster IPs; none: there is no such Service
	Servers int          `json:"servers"`
	Here    int          `json:"here"` // of the servers
	// Silent are those of this node that do not answer the agent.
	Silent []netip.Addr `json:"silent,omitempty"`
	// SameNode says that the API server leads this node's queries to its own server
	// (trafficDistribution: PreferSameNode).
	SameNode bool `json:"sameNode"`
}

func (d *localDNS) status(s *cluster.Snapshot, node string) DNSStatus {
	out := DNSStatus{Service: d.service.String(), Silent: d.silent}
	svc := s.Services.Get(d.service)
	if svc == nil {
		return out
	}
	out.Addrs = svc.ClusterIPs
	of := s.Endpoints.Get(d.service)
	if of == nil {
		return out
	}
	seen := map[cluster.Key]bool{}
	for _, sl := range of.Slices {
		for _, e := range sl.Endpoints {
			if !e.Ready || seen[e.Pod] && e.Pod != (cluster.Key{}) {
				continue
			}
			seen[e.Pod] = true
			out.Servers++
			out.SameNode = out.SameNode || len(e.NodeHints) > 0
			if e.Node == node {
				out.Here++
			}
		}
	}
	return out
}
