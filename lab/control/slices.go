package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

// maxEndpoints is the size of a slice, as in Kubernetes' controller.
const maxEndpoints = 100

// derive gives the slices of the Services that have a selector, except those
// whose slices are among the objects already.
func derive(of *file.Objects, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	zones := map[string]string{}
	for _, n := range of.Nodes {
		zones[n.Name] = n.Labels[corev1.LabelTopologyZone]
	}
	var all []*discoveryv1.EndpointSlice
	for _, s := range of.Services {
		has := slices.ContainsFunc(of.EndpointSlices, func(e *discoveryv1.EndpointSlice) bool {
			return e.Namespace == s.Namespace && e.Labels[discoveryv1.LabelServiceName] == s.Name
		})
		if has || len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		members := slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool {
			return p.Namespace != s.Namespace || !matches(s.Spec.Selector, p.Labels) || p.Spec.NodeName == "" || len(p.Status.PodIPs) == 0 ||
				p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		})
		for _, f := range s.Spec.IPFamilies {
			all = append(all, serviceSlices(s, f, members, zones)...)
		}
	}
	return all
}

// serviceSlices gives the slices of one family: pods whose target ports come to
// the same numbers share a slice.
func serviceSlices(s *corev1.Service, f corev1.IPFamily, pods []*corev1.Pod, zones map[string]string) []*discoveryv1.EndpointSlice {
	ports := map[string][]discoveryv1.EndpointPort{}
	endpoints := map[string][]discoveryv1.Endpoint{}
	var order []string
	for _, p := range pods {
		ip := addressOf(p, f)
		if ip == "" {
			continue
		}
		resolved := targetPorts(s, p)
		id := portsID(resolved)
		if _, seen := ports[id]; !seen {
			ports[id] = resolved
			order = append(order, id)
		}
		endpoints[id] = append(endpoints[id], endpoint(s, p, ip, zones[p.Spec.NodeName]))
	}
	slices.Sort(order)
	var out []*discoveryv1.EndpointSlice
	for _, id := range order {
		for i, part := range slices.Collect(slices.Chunk(endpoints[id], maxEndpoints)) {
			e := newSlice(s, f, digest(5, f, id, i))
			e.Ports, e.Endpoints = ports[id], part
			out = append(out, e)
		}
	}
	return out
}

func newSlice(s *corev1.Service, f corev1.IPFamily, suffix string) *discoveryv1.EndpointSlice {
	e := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name + "-" + suffix, Labels: map[string]string{
			discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: "lab.podlane"}},
		AddressType: discoveryv1.AddressType(f),
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		e.Labels["service.kubernetes.io/headless"] = ""
	}
	return e
}

func addressOf(p *corev1.Pod, f corev1.IPFamily) string {
	for _, ip := range p.Status.PodIPs {
		if strings.Contains(ip.IP, ":") == (f == corev1.IPv6Protocol) {
			return ip.IP
		}
	}
	return ""
}

// targetPorts leaves out a port whose target name no container of the pod has.
func targetPorts(s *corev1.Service, p *corev1.Pod) []discoveryv1.EndpointPort {
	var out []discoveryv1.EndpointPort
	for _, port := range s.Spec.Ports {
		protocol := cmp.Or(port.Protocol, corev1.ProtocolTCP)
		number := cmp.Or(port.TargetPort.IntVal, port.Port)
		if name := port.TargetPort.StrVal; name != "" {
			if number = namedPort(p, name, protocol); number == 0 {
				continue
			}
		}
		name := port.Name
		out = append(out, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number, AppProtocol: port.AppProtocol})
	}
	return out
}

func namedPort(p *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			if port.Name == name && cmp.Or(port.Protocol, corev1.ProtocolTCP) == protocol {
				return port.ContainerPort
			}
		}
	}
	return 0
}

func portsID(ports []discoveryv1.EndpointPort) string {
	var b strings.Builder
	for _, p := range ports {
		fmt.Fprintf(&b, "%s %s %d;", *p.Name, *p.Protocol, *p.Port)
	}
	return b.String()
}

func endpoint(s *corev1.Service, p *corev1.Pod, ip, zone string) discoveryv1.Endpoint {
	serving, terminating := convert.Pod(p).Ready, p.DeletionTimestamp != nil
	ready := s.Spec.PublishNotReadyAddresses || serving && !terminating
	node := p.Spec.NodeName
	e := discoveryv1.Endpoint{
		Addresses:  []string{ip},
		Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating},
		NodeName:   &node,
		TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID},
	}
	if zone != "" {
		e.Zone = &zone
	}
	if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
		hostname := p.Spec.Hostname
		e.Hostname = &hostname
	}
	if d := s.Spec.TrafficDistribution; d != nil {
		e.Hints = hints(*d, node, zone)
	}
	return e
}

// hints are those of KEP-4444 and KEP-3015: each endpoint is for its own node or
// zone.
func hints(distribution, node, zone string) *discoveryv1.EndpointHints {
	switch {
	case distribution == corev1.ServiceTrafficDistributionPreferSameNode:
		return &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: node}}}
	case zone != "":
		return &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
	}
	return nil
}
