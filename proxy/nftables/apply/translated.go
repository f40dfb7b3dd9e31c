package apply

import (
	"net/netip"

	"github.com/podlane/podlane/cluster"
)

// AddTranslated adds connections that were translated at their sockets and that no
// rule has seen, by frontend.
func AddTranslated(counts []Count, by map[netip.AddrPort]uint64) {
	for i, c := range counts {
		if c.Protocol == cluster.TCP {
			counts[i].New += by[c.Frontend]
		}
	}
}

// AddTranslatedTo adds them by endpoint. counts say whose the frontends are.
func AddTranslatedTo(ends []EndpointCount, counts []Count, by map[[2]netip.AddrPort]uint64) {
	owners := map[netip.AddrPort]string{}
	for _, c := range counts {
		if c.Protocol == cluster.TCP {
			owners[c.Frontend] = c.Service
		}
	}
	type end struct {
		service  string
		endpoint netip.AddrPort
	}
	sums := map[end]uint64{}
	for pair, n := range by {
		sums[end{owners[pair[0]], pair[1]}] += n
	}
	for i, e := range ends {
		if e.Protocol == cluster.TCP {
			ends[i].New += sums[end{e.Service, e.Endpoint}]
		}
	}
}
