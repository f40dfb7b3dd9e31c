package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
)

// headless is the ready endpoints of a headless Service, or of any (see
// Config.AllEndpoints). A headless Service without any has none: its name does not
// exist (specification, section 2.4.1).
type headless struct {
	endpoints []endpoint   // sorted by host, then address
	addrs     []netip.Addr // sorted, each once
}

// endpoint is one ready endpoint. An endpoint that is in two slices is here
// twice, with the ports of each.
type endpoint struct {
	host  string
	addr  netip.Addr
	ports []cluster.EndpointPort // the slice's own
}

func (e endpoint) compare(o endpoint) int {
	return cmp.Or(cmp.Compare(e.host, o.host), e.addr.Compare(o.addr))
}

// compileHeadless gives nil where the Service is none, not headless unless all are
// wanted, or without a ready endpoint.
func compileHeadless(s *cluster.Service, eps *cluster.ServiceSlices, all bool) *headless {
	if s == nil || eps == nil || !s.Headless && !all || s.Type == cluster.ExternalName {
		return nil
	}
	h := &headless{}
	for _, slice := range eps.Slices {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			if e.Address.IsValid() && (e.Ready || s.PublishNotReadyAddresses) {
				h.endpoints = append(h.endpoints, endpoint{hostOf(e), e.Address, slice.Ports})
				h.addrs = append(h.addrs, e.Address)
			}
		}
	}
	if len(h.endpoints) == 0 {
		return nil
	}
	slices.SortStableFunc(h.endpoints, endpoint.compare)
	slices.SortFunc(h.addrs, netip.Addr.Compare)
	h.endpoints, h.addrs = slices.Clip(h.endpoints), slices.Clip(slices.Compact(h.addrs))
	return h
}

// hostOf is the name of an endpoint below its Service: its hostname, or its
// address with dashes, as in CoreDNS.
func hostOf(e *cluster.Endpoint) string {
	if e.Hostname != "" {
		return strings.ToLower(e.Hostname)
	}
	return dashed(e.Address)
}

// dashed gives an address as a label, which does not end in a dash.
func dashed(a netip.Addr) string {
	s := strings.NewReplacer(".", "-", ":", "-").Replace(a.WithZone("").String())
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}

// undashed reads the address of a pod record's first label.
func undashed(label string) (netip.Addr, bool) {
	sep := ":"
	if strings.Count(label, "-") == 3 && !strings.Contains(label, "--") {
		sep = "."
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(label, "-", sep))
	return a, err == nil && a.Zone() == ""
}

// named gives the endpoints with a host name, all of them in a row.
func (h *headless) named(host string) []endpoint {
	from, found := slices.BinarySearchFunc(h.endpoints, host, func(e endpoint, host string) int {
		return cmp.Compare(e.host, host)
	})
	if !found {
		return nil
	}
	to := from
	for to < len(h.endpoints) && h.endpoints[to].host == host {
		to++
	}
	return h.endpoints[from:to]
}
