package stale

import (
	"net/netip"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// TCPFrontends gives the addresses of a Table that TCP clients connect to, but for node
// ports: without rules the node itself answers there. It walks all Services.
func TCPFrontends(t *proxy.Table) map[netip.AddrPort]bool {
	fronts := map[netip.AddrPort]bool{}
	for _, e := range t.Services.All() {
		for i := range e.Ports {
			if e.Ports[i].Protocol != cluster.TCP {
				continue
			}
			for _, f := range e.Ports[i].Frontends {
				if f.Kind != proxy.NodePort {
					fronts[f.Addr] = true
				}
			}
		}
	}
	return fronts
}
