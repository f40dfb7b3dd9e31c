package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/cluster"
)

// proxyNameLabel gives a Service to another service proxy.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

// countAnnotation asks for counters of each endpoint of a Service.
const countAnnotation = "podlane.dev/count-endpoints"

// Service converts a Service. A Service without a cluster IP (not yet allocated)
// has none; that is no Problem. The cluster IP that a Service of type
// ExternalName may keep for a while after a change of type is not taken.
func Service(s *corev1.Service) *cluster.Service {
	p := problems{kind: "Service", key: key(s.Namespace, s.Name)}
	out := &cluster.Service{
		Key:                      p.key,
		UID:                      string(s.UID),
		Type:                     serviceType(&p, s.Spec.Type),
		ProxyName:                s.Labels[proxyNameLabel],
		PublishNotReadyAddresses: s.Spec.PublishNotReadyAddresses,
	}
	if out.Type == cluster.ExternalName {
		out.ExternalName = s.Spec.ExternalName
		if out.ExternalName == "" {
			p.add("spec.externalName", "is missing: a Service of type ExternalName needs the name that it stands for")
		}
	} else {
		out.ClusterIPs, out.Headless = clusterIPs(&p, s)
	}
	out.Ports = servicePorts(&p, s)
	out.ExternalIPs = external(&p, indexed("spec.externalIPs[%d]"), s.Spec.ExternalIPs)
	out.LoadBalancerIPs = loadBalancerIPs(&p, s)
	out.SourceRanges = sourceRanges(&p, s)
	policies(&p, s, out)
	out.CountEndpoints = s.Annotations[countAnnotation] == "true"
	out.Problems = p.list
	return out
}

// policies converts what decides over the choice of endpoints.
func policies(p *problems, s *corev1.Service, out *cluster.Service) {
	out.InternalLocal = value(s.Spec.InternalTrafficPolicy) == corev1.ServiceInternalTrafficPolicyLocal
	hasOutside := out.Type == cluster.LoadBalancer || out.Type == cluster.NodePort ||
		out.Type == cluster.ClusterIP && len(s.Spec.ExternalIPs) > 0
	out.ExternalLocal = hasOutside && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	if n := s.Spec.HealthCheckNodePort; out.Type == cluster.LoadBalancer && out.ExternalLocal && n != 0 {
		out.HealthCheckNodePort, _ = p.port("spec.healthCheckNodePort", n)
	}
	if s.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return
	}
	seconds := int32(corev1.DefaultClientIPServiceAffinitySeconds)
	if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	if seconds < 1 || seconds > 86400 {
		p.add("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "%d is not between 1 and 86400: %d is taken", seconds, min(max(seconds, 1), 86400))
		seconds = min(max(seconds, 1), 86400)
	}
	out.Affinity = uint32(seconds)
}

// external takes each address once. One that could lead a node's own traffic
// astray is refused.
func external(p *problems, field func(int) string, of []string) []netip.Addr {
	var out []netip.Addr
	for i, s := range of {
		a, ok := p.addr(field(i), s)
		switch {
		case !ok || slices.Contains(out, a):
		case a.IsUnspecified() || a.IsLoopback() || a.IsMulticast():
			p.add(field(i), "%s is an unspecified, loopback or multicast address: it is left out", a)
		default:
			out = append(out, a)
		}
	}
	return out
}

// loadBalancerIPs leaves out host names and what is in ipMode Proxy: such traffic
// has to go to the load balancer itself.
func loadBalancerIPs(p *problems, s *corev1.Service) []netip.Addr {
	var ips []string
	var at []int
	for i, in := range s.Status.LoadBalancer.Ingress {
		if in.IP != "" && (in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP) {
			ips, at = append(ips, in.IP), append(at, i)
		}
	}
	return external(p, func(i int) string { return fmt.Sprintf("status.loadBalancer.ingress[%d].ip", at[i]) }, ips)
}

// sourceRanges takes ranges with blanks around them, as the API does.
func sourceRanges(p *problems, s *corev1.Service) []netip.Prefix {
	var out []netip.Prefix
	for i, r := range s.Spec.LoadBalancerSourceRanges {
		if c, ok := p.prefix(fmt.Sprintf("spec.loadBalancerSourceRanges[%d]", i), strings.TrimSpace(r)); ok && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	return out
}

func serviceType(p *problems, t corev1.ServiceType) cluster.ServiceType {
	switch t {
	case "":
		return cluster.ClusterIP
	case corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeExternalName:
		return cluster.ServiceType(t)
	}
	p.add("spec.type", "%q is not one of ClusterIP, NodePort, LoadBalancer and ExternalName: ClusterIP is taken", t)
	return cluster.ClusterIP
}

func clusterIPs(p *problems, s *corev1.Service) (ips []netip.Addr, headless bool) {
	field, list := indexed("spec.clusterIPs[%d]"), s.Spec.ClusterIPs
	if len(list) == 0 && s.Spec.ClusterIP != "" {
		field, list = func(int) string { return "spec.clusterIP" }, []string{s.Spec.ClusterIP}
	}
	if len(list) > 0 && list[0] == corev1.ClusterIPNone {
		if len(list) > 1 {
			p.add(field(1), "%q follows %q: a headless Service has no address, so it is left out", list[1], list[0])
		}
		return nil, true
	}
	return p.onePerFamily(field, list), false
}

func servicePorts(p *problems, s *corev1.Service) []cluster.ServicePort {
	type number struct {
		protocol cluster.Protocol
		port     uint16
	}
	var out []cluster.ServicePort
	names, numbers := map[string]bool{}, map[number]bool{}
	for i := range s.Spec.Ports {
		field := fmt.Sprintf("spec.ports[%d]", i)
		sp, ok := servicePort(p, field, &s.Spec.Ports[i])
		if !ok {
			continue
		}
		if n := (number{sp.Protocol, sp.Port}); numbers[n] {
			p.add(field+".port", "%s %d is there twice: the second one is left out", sp.Protocol, sp.Port)
			continue
		} else if names[sp.Name] {
			p.add(field+".name", "%q is there twice, and each port needs a name of its own: the second one is left out", sp.Name)
			continue
		} else {
			numbers[n], names[sp.Name] = true, true
		}
		out = append(out, sp)
	}
	return out
}

func servicePort(p *problems, field string, in *corev1.ServicePort) (cluster.ServicePort, bool) {
	name, named := p.portName(field+".name", in.Name)
	proto, known := p.protocol(field+".protocol", in.Protocol)
	port, valid := p.port(field+".port", in.Port)
	if !named || !known || !valid {
		return cluster.ServicePort{}, false
	}
	out := cluster.ServicePort{Name: name, Protocol: proto, Port: port}
	if in.NodePort < 0 || in.NodePort > 65535 {
		p.add(field+".nodePort", "%d is not between 1 and 65535: the port gets no node port", in.NodePort)
	} else {
		out.NodePort = uint16(in.NodePort)
	}
	return out, true
}
