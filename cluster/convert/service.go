package convert

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/cluster"
)

// proxyNameLabel gives a Service to another service proxy.
const proxyNameLabel = "service.kubernetes.io/service-proxy-name"

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
	out.Problems = p.list
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
