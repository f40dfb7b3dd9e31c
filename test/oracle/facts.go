package oracle

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	netutils "k8s.io/utils/net"

	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
)

// facts are what the API's objects say of a group: which Service has its target, and
// what its endpoints are like. They are read anew here, so that what was covered does
// not depend on what is tested.
type facts struct {
	*group
	state   *history.State
	before  *history.State // of the last look
	service *corev1.Service
	port    corev1.ServicePort
	kind    proxy.Kind
	ingress []corev1.LoadBalancerIngress // those with the target's address

	ready, leaving           []discoveryv1.Endpoint // leaving: serving while terminating
	localReady, localLeaving []discoveryv1.Endpoint
	others                   int // endpoints that are neither
	nodeHints, zoneHints     hinted
	numbers                  map[int32]bool // target ports
	again                    int            // addresses that came twice
}

// hinted is what the hints of the ready endpoints say.
type hinted struct{ any, all, here bool }

func parse(s string) netip.Addr {
	a, _ := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	return a.Unmap()
}

// factsOf finds the target's Service; without one, service is nil.
func factsOf(g *group, now, before *history.State) *facts {
	f := &facts{group: g, state: now, before: before, numbers: map[int32]bool{}}
	for _, s := range now.Services {
		for _, p := range s.Spec.Ports {
			if protocols[p.Protocol] == g.protocol && f.claims(s, p) {
				f.service, f.port = s, p
				f.readEndpoints()
				return f
			}
		}
	}
	return f
}

// claims sets the kind of frontend.
func (f *facts) claims(s *corev1.Service, p corev1.ServicePort) bool {
	a, port := f.to.Addr(), int32(f.to.Port())
	is := func(ip string) bool { return parse(ip) == a }
	for _, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" && is(in.IP) && port == p.Port {
			f.ingress = append(f.ingress, in)
		}
	}
	switch {
	case port == p.Port && slices.ContainsFunc(s.Spec.ClusterIPs, is):
		f.kind = proxy.ClusterIP
	case port == p.Port && slices.ContainsFunc(s.Spec.ExternalIPs, is):
		f.kind = proxy.ExternalIP
	case len(f.ingress) > 0:
		f.kind = proxy.LoadBalancer
	case port == p.NodePort && f.toNode():
		f.kind = proxy.NodePort
	default:
		return false
	}
	return true
}

func isTrue(b *bool, unset bool) bool {
	if b == nil {
		return unset
	}
	return *b
}

func (f *facts) readEndpoints() {
	type key struct {
		addr string
		port int32
	}
	all := map[key]discoveryv1.Endpoint{}
	for _, es := range f.state.Of(f.service.Name) {
		if _, headless := es.Labels[corev1.IsHeadlessService]; headless || (es.AddressType == discoveryv1.AddressTypeIPv6) != f.v6() {
			continue
		}
		for _, p := range es.Ports {
			if p.Port == nil || *p.Name != f.port.Name || *p.Protocol != f.port.Protocol {
				continue
			}
			for _, e := range es.Endpoints {
				k := key{e.Addresses[0], *p.Port}
				if _, twice := all[k]; twice {
					f.again++
				} else {
					f.numbers[*p.Port] = true
				}
				if _, twice := all[k]; !twice || !isTrue(e.Conditions.Terminating, false) {
					all[k] = e
				}
			}
		}
	}
	f.nodeHints, f.zoneHints = hinted{all: true}, hinted{all: true}
	for _, e := range all {
		f.sort(e)
	}
}

func (f *facts) sort(e discoveryv1.Endpoint) {
	local := e.NodeName != nil && *e.NodeName == history.Node
	switch {
	case isTrue(e.Conditions.Ready, true):
		f.ready = append(f.ready, e)
		if local {
			f.localReady = append(f.localReady, e)
		}
		h := e.Hints
		if h == nil {
			h = &discoveryv1.EndpointHints{}
		}
		f.nodeHints.add(len(h.ForNodes), slices.ContainsFunc(h.ForNodes, func(n discoveryv1.ForNode) bool { return n.Name == history.Node }))
		f.zoneHints.add(len(h.ForZones), slices.ContainsFunc(h.ForZones, func(z discoveryv1.ForZone) bool { return z.Name == f.state.Zone }))
	case isTrue(e.Conditions.Serving, true) && isTrue(e.Conditions.Terminating, false):
		f.leaving = append(f.leaving, e)
		if local {
			f.localLeaving = append(f.localLeaving, e)
		}
	default:
		f.others++
	}
}

func (h *hinted) add(n int, here bool) {
	h.any, h.all, h.here = h.any || n > 0, h.all && n > 0, h.here || here
}

// proxied says that the Service is the proxy's to serve.
func (f *facts) proxied() bool {
	return f.service != nil && watched(f.service) != nil && f.service.Spec.Type != corev1.ServiceTypeExternalName
}

func (f *facts) serves(k proxy.Kind) bool { return f.proxied() && f.kind == k }

// outside says that it is a frontend for the world, and not one that is only shown.
func (f *facts) outside() bool {
	return f.proxied() && f.kind != proxy.ClusterIP && (f.kind != proxy.LoadBalancer || slices.ContainsFunc(f.ingress, vip))
}

func vip(in corev1.LoadBalancerIngress) bool {
	return in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP
}

// local says that the traffic policy of the frontend is Local.
func (f *facts) local() bool {
	if f.kind == proxy.ClusterIP {
		return f.proxied() && isPolicy(f.service.Spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyLocal)
	}
	return f.outside() && f.service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

func isPolicy[T comparable](p *T, want T) bool { return p != nil && *p == want }

// cluster says that the policy Cluster holds, for a frontend that works.
func (f *facts) cluster() bool { return (f.outside() || f.serves(proxy.ClusterIP)) && !f.local() }

func (f *facts) is(name string) bool { return f.client.name == name }

// any says that there is an endpoint anywhere.
func (f *facts) any() bool { return len(f.ready)+len(f.leaving) > 0 }

func (f *facts) anyLocal() bool { return len(f.localReady)+len(f.localLeaving) > 0 }

// met says that all connections met this in Podlane's node.
func (f *facts) saw(what string, masqueraded bool) bool {
	for m := range f.seen[1] {
		if m.what != what || m.at != 2 && m.source.IsValid() != masqueraded {
			return false
		}
	}
	return len(f.seen[1]) > 0
}

// ranges gives the source ranges of the target's family.
func (f *facts) ranges() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range f.service.Spec.LoadBalancerSourceRanges {
		if _, n, err := netutils.ParseCIDRSloppy(trim(s)); err == nil {
			a, _ := netip.AddrFromSlice(n.IP)
			bits, _ := n.Mask.Size()
			if a.Is6() == f.v6() {
				out = append(out, netip.PrefixFrom(a, bits))
			}
		}
	}
	return out
}

// limited says that source ranges are in force for the target.
func (f *facts) limited() bool {
	return f.outside() && len(f.ingress) > 0 && len(f.ranges()) > 0 && !slices.ContainsFunc(f.ranges(), func(p netip.Prefix) bool { return p.Bits() == 0 })
}

// was is the Service at the last look.
func (f *facts) was() *corev1.Service {
	if f.service == nil {
		return nil
	}
	return f.before.Services[f.service.Name]
}
