package convert

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/podlane/podlane/cluster"
)

// EndpointSlice converts an endpoint slice, or gives nil for one that no network
// uses: without the label kubernetes.io/service-name, or of addressType FQDN.
//
// A port without a number stands for all ports; it is skipped without a word, as
// kube-proxy does. So is every address of an endpoint but the first, which the
// API leaves without meaning.
func EndpointSlice(s *discoveryv1.EndpointSlice) *cluster.EndpointSlice {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.AddressType == discoveryv1.AddressTypeFQDN {
		return nil
	}
	p := problems{kind: "EndpointSlice", key: key(s.Namespace, s.Name)}
	_, headless := s.Labels[corev1.IsHeadlessService]
	out := &cluster.EndpointSlice{
		Key:       p.key,
		Service:   intern(service),
		Headless:  headless,
		IPv6:      s.AddressType == discoveryv1.AddressTypeIPv6,
		Triggered: s.Annotations[corev1.EndpointsLastChangeTriggerTime],
		Ports:     endpointPorts(&p, s.Ports),
	}
	if !out.IPv6 && s.AddressType != discoveryv1.AddressTypeIPv4 {
		p.add("addressType", "%q is not one of IPv4, IPv6 and FQDN: the endpoints are left out", s.AddressType)
	} else {
		out.Endpoints = endpoints(&p, s, out.IPv6)
	}
	out.Problems = p.list
	return out
}

func endpointPorts(p *problems, ports []discoveryv1.EndpointPort) []cluster.EndpointPort {
	var out []cluster.EndpointPort
	for i, in := range ports {
		if in.Port == nil {
			continue
		}
		field := fmt.Sprintf("ports[%d]", i)
		name, named := p.portName(field+".name", value(in.Name))
		proto, known := p.protocol(field+".protocol", value(in.Protocol))
		port, valid := p.port(field+".port", *in.Port)
		if named && known && valid {
			out = append(out, cluster.EndpointPort{Name: name, Protocol: proto, Port: port})
		}
	}
	return out
}

func endpoints(p *problems, s *discoveryv1.EndpointSlice, v6 bool) []cluster.Endpoint {
	out := slices.Grow([]cluster.Endpoint(nil), len(s.Endpoints))
	for i := range s.Endpoints {
		in := &s.Endpoints[i]
		a, ok := endpointAddr(p, fmt.Sprintf("endpoints[%d].addresses", i), in.Addresses, v6)
		if !ok {
			continue
		}
		out = append(out, endpoint(in, a, s.Namespace))
	}
	return out
}

// endpointAddr refuses what the API refuses: an address of the other family, and
// one that could lead traffic into the node itself or to no host at all.
func endpointAddr(p *problems, field string, addrs []string, v6 bool) (netip.Addr, bool) {
	if len(addrs) == 0 {
		p.add(field, "is empty: the endpoint is left out")
		return netip.Addr{}, false
	}
	field += "[0]"
	a, ok := p.addr(field, addrs[0])
	switch {
	case !ok:
	case a.Is6() != v6:
		p.add(field, "%s is not of the slice's addressType: the endpoint is left out", a)
		ok = false
	case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
		p.add(field, "%s is an unspecified, loopback, link-local or multicast address: the endpoint is left out", a)
		ok = false
	}
	return a, ok
}

func endpoint(in *discoveryv1.Endpoint, a netip.Addr, namespace string) cluster.Endpoint {
	out := cluster.Endpoint{
		Address:     a,
		Ready:       isTrue(in.Conditions.Ready),
		Serving:     isTrue(in.Conditions.Serving),
		Terminating: value(in.Conditions.Terminating),
		Node:        intern(value(in.NodeName)),
		Zone:        intern(value(in.Zone)),
		Hostname:    value(in.Hostname),
	}
	if t := in.TargetRef; t != nil && t.Kind == "Pod" {
		out.Pod = key(t.Namespace, t.Name)
		if t.Namespace == "" {
			out.Pod.Namespace = intern(namespace)
		}
	}
	if h := in.Hints; h != nil {
		for _, z := range h.ForZones {
			out.ZoneHints = append(out.ZoneHints, intern(z.Name))
		}
		for _, n := range h.ForNodes {
			out.NodeHints = append(out.NodeHints, intern(n.Name))
		}
	}
	return out
}

// isTrue reads the conditions whose default is true.
func isTrue(b *bool) bool { return b == nil || *b }
