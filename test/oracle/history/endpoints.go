package history

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	netutils "k8s.io/utils/net"
)

func sameRange(a, b string) bool {
	_, x, err1 := netutils.ParseCIDRSloppy(strings.TrimSpace(a))
	_, y, err2 := netutils.ParseCIDRSloppy(strings.TrimSpace(b))
	return err1 == nil && err2 == nil && x.String() == y.String()
}

// slicesOf makes the slices of a Service anew: one or two of each family.
func slicesOf(r *rand.Rand, s *corev1.Service) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, v6 := range []bool{false, true} {
		n := pick(r, 1, 1, 2)
		if chance(r, 8) {
			n = 0
		}
		family := make([]*discoveryv1.EndpointSlice, n)
		for k := range family {
			family[k] = slice(r, s, v6, k)
		}
		if n == 2 {
			moved(r, family[0], family[1])
		}
		hints(r, family)
		out = append(out, family...)
	}
	return out
}

func slice(r *rand.Rand, s *corev1.Service, v6 bool, k int) *discoveryv1.EndpointSlice {
	kind := discoveryv1.AddressTypeIPv4
	if v6 {
		kind = discoveryv1.AddressTypeIPv6
	}
	es := &discoveryv1.EndpointSlice{AddressType: kind}
	es.ObjectMeta = metav1.ObjectMeta{Namespace: Namespace, Name: fmt.Sprintf("%s-%s-%d", s.Name, strings.ToLower(string(kind)), k),
		Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}}
	first := int32(8000)
	if chance(r, 30) {
		first += 1000 // a named target port has another number in other pods
	}
	for i, p := range s.Spec.Ports {
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: ptr(p.Name), Protocol: ptr(p.Protocol), Port: ptr(first + int32(i))})
	}
	switch r.IntN(12) {
	case 0: // one that stands for all ports
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: ptr("any"), Protocol: ptr(corev1.ProtocolTCP)})
	case 1: // one of no port of the Service
		es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: ptr("other"), Protocol: ptr(corev1.ProtocolTCP), Port: ptr(int32(7000))})
	}
	for range pick(r, 0, 0, 1, 1, 2, 2, 3, 4) {
		endpoint(r, es, v6)
	}
	return es
}

// endpoint adds one, at an address that the slice does not have yet.
func endpoint(r *rand.Rand, es *discoveryv1.EndpointSlice, v6 bool) {
	e := discoveryv1.Endpoint{}
	switch r.IntN(21) {
	case 20: // written by hand: a pod of the node, but no node is named
		e.Addresses = []string{pick(r, EndpointPods(v6)...).String()}
	case 0: // with hostNetwork
		e.Addresses, e.NodeName = []string{NodeAddrs[index(v6)].String()}, ptr(Node)
	case 1, 2: // written by hand: a host that is on no node
		e.Addresses = []string{Nth(netip.MustParsePrefix([]string{"100.90.0.0/16", "fd00:90::/64"}[index(v6)]), uint32(r.IntN(20)+1)).String()}
	case 3, 4, 5, 6, 7, 8, 9, 10:
		e.Addresses, e.NodeName = []string{Nth(RemoteRanges[index(v6)], uint32(r.IntN(20)+1)).String()}, ptr(OtherNode)
	default:
		e.Addresses, e.NodeName = []string{pick(r, EndpointPods(v6)...).String()}, ptr(Node)
	}
	if slices.ContainsFunc(es.Endpoints, func(o discoveryv1.Endpoint) bool { return o.Addresses[0] == e.Addresses[0] }) {
		return
	}
	if chance(r, 5) {
		e.Addresses = append(e.Addresses, Nth(RemoteRanges[index(v6)], 200).String()) // without meaning
	}
	e.Conditions = conditions(r)
	es.Endpoints = append(es.Endpoints, e)
}

func conditions(r *rand.Rand) discoveryv1.EndpointConditions {
	c := func(ready, serving, terminating bool) discoveryv1.EndpointConditions {
		return discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	switch n := r.IntN(100); {
	case n < 15:
		return discoveryv1.EndpointConditions{}
	case n < 60:
		return c(true, true, false)
	case n < 70:
		return c(false, false, false)
	case n < 92:
		return c(false, true, true)
	}
	return c(false, false, true)
}

// moved gives both slices an endpoint, as when it moves or when another pod has its
// address: the two agree, or one is terminating.
func moved(r *rand.Rand, a, b *discoveryv1.EndpointSlice) {
	b.Endpoints = slices.DeleteFunc(b.Endpoints, func(e discoveryv1.Endpoint) bool {
		return slices.ContainsFunc(a.Endpoints, func(o discoveryv1.Endpoint) bool { return o.Addresses[0] == e.Addresses[0] })
	})
	if len(a.Endpoints) == 0 || !chance(r, 35) {
		return
	}
	b.Ports = slices.Clone(a.Ports)
	twin := *a.Endpoints[0].DeepCopy()
	twin.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(chance(r, 50)), Terminating: ptr(true)}
	a.Endpoints[0].Conditions = discoveryv1.EndpointConditions{Ready: ptr(chance(r, 75)), Terminating: ptr(false)}
	a.Endpoints[0].Conditions.Serving = a.Endpoints[0].Conditions.Ready
	if chance(r, 50) {
		twin, a.Endpoints[0] = a.Endpoints[0], twin
	}
	b.Endpoints = append(b.Endpoints, twin)
}

// Zones of the nodes. The last one has no endpoint.
var zones = []string{"za", "zb", "zc"}

// hints gives the endpoints of a family topology hints: all of them, or all but
// some.
func hints(r *rand.Rand, of []*discoveryv1.EndpointSlice) {
	zone, node, gaps := chance(r, 45), chance(r, 25), chance(r, 20)
	for _, es := range of {
		for i := range es.Endpoints {
			e := &es.Endpoints[i]
			e.Hints = nil
			if gaps && chance(r, 40) {
				continue
			}
			h := &discoveryv1.EndpointHints{}
			if zone {
				h.ForZones = []discoveryv1.ForZone{{Name: pick(r, zones[:2]...)}}
			}
			if node {
				h.ForNodes = []discoveryv1.ForNode{{Name: pick(r, Node, OtherNode)}}
			}
			if zone || node {
				e.Hints = h
			}
		}
	}
}
