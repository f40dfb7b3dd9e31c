package history

import (
	"fmt"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func ptr[T any](v T) *T { return &v }

// chance is true n times in a hundred.
func chance(r *rand.Rand, n int) bool { return r.IntN(100) < n }

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// name and number of the i-th Service.
func name(i int) string { return fmt.Sprintf("svc%d", i) }

// service makes the i-th Service anew. No two Services have an address and port in
// common: whose it would be, kube-proxy leaves to chance.
func service(r *rand.Rand, i int) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name(i)}}
	families(r, s, i)
	ports(r, s)
	kind(r, s, i)
	policies(r, s)
	affinity(r, s)
	return s
}

func families(r *rand.Rand, s *corev1.Service, i int) {
	v4, v6 := corev1.IPv4Protocol, corev1.IPv6Protocol
	s.Spec.IPFamilies = pick(r, []corev1.IPFamily{v4}, []corev1.IPFamily{v6}, []corev1.IPFamily{v4, v6}, []corev1.IPFamily{v4, v6}, []corev1.IPFamily{v6, v4})
	s.Spec.ClusterIPs = nil
	for _, f := range s.Spec.IPFamilies {
		ip := fmt.Sprintf("10.96.0.%d", 10+i)
		if f == v6 {
			ip = fmt.Sprintf("fd00:96::%x", 0x10+i)
		}
		if chance(r, 10) {
			ip = sloppy(ip)
		}
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip)
	}
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	if len(s.Spec.IPFamilies) == 1 && chance(r, 20) {
		s.Spec.IPFamilies = nil // of a Service from before they were there
	}
}

// menu are the ports that a Service may have.
var menu = [][]corev1.ServicePort{
	{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	{{Name: "", Protocol: corev1.ProtocolTCP, Port: 80}},
	{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53}},
	{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}, {Name: "https", Protocol: corev1.ProtocolTCP, Port: 443}},
	{{Name: "sctp", Protocol: corev1.ProtocolSCTP, Port: 80}, {Name: "udp", Protocol: corev1.ProtocolUDP, Port: 80}, {Name: "http", Protocol: corev1.ProtocolTCP, Port: 80}},
	{{Name: "quic", Protocol: corev1.ProtocolUDP, Port: 443}},
	{{Name: "sctp", Protocol: corev1.ProtocolSCTP, Port: 9000}},
}

func ports(r *rand.Rand, s *corev1.Service) {
	s.Spec.Ports = slices.Clone(pick(r, menu...))
	if chance(r, 15) && s.Spec.Ports[0].Name != "" {
		s.Spec.Ports[0].Name += "-new"
	}
}

// kind gives the Service its type, and what goes with it.
func kind(r *rand.Rand, s *corev1.Service, i int) {
	s.Spec.Type = pick(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeLoadBalancer)
	s.Spec.ExternalName, s.Spec.ExternalIPs, s.Status = "", nil, corev1.ServiceStatus{}
	if chance(r, 5) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "elsewhere.example"
	}
	if chance(r, 40) {
		externalIPs(r, s, i)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		ingress(r, s, i)
		sourceRanges(r, s)
	}
	nodePorts(r, s, i)
}

func externalIPs(r *rand.Rand, s *corev1.Service, i int) {
	s.Spec.ExternalIPs = []string{fmt.Sprintf("203.0.113.%d", 10+i), fmt.Sprintf("fd00:203::%x", 0x10+i)}
	if chance(r, 30) {
		s.Spec.ExternalIPs = s.Spec.ExternalIPs[:1]
	}
	if chance(r, 10) {
		s.Spec.ExternalIPs[0] = sloppy(s.Spec.ExternalIPs[0])
	}
	if i == 0 && chance(r, 40) {
		s.Spec.ExternalIPs = append(s.Spec.ExternalIPs, NodeAddrs[0].String(), NodeAddrs[1].String())
	}
}

func ingress(r *rand.Rand, s *corev1.Service, i int) {
	var in []corev1.LoadBalancerIngress
	for _, ip := range []string{fmt.Sprintf("203.0.113.%d", 100+i), fmt.Sprintf("203.0.113.%d", 150+i), fmt.Sprintf("fd00:203::%x", 0x100+i)} {
		if chance(r, 65) {
			l := corev1.LoadBalancerIngress{IP: ip}
			switch r.IntN(8) {
			case 0, 1:
				l.IPMode = ptr(corev1.LoadBalancerIPModeProxy)
			case 2:
				l.IPMode = ptr(corev1.LoadBalancerIPModeVIP)
			case 3:
				l.IP = sloppy(ip)
			}
			in = append(in, l)
		}
	}
	if i == 1 && chance(r, 30) { // as with k3s, whose load balancers are the nodes
		in = append(in, corev1.LoadBalancerIngress{IP: OtherAddrs[0].String()}, corev1.LoadBalancerIngress{IP: OtherAddrs[1].String()})
	}
	if chance(r, 15) {
		in = append(in, corev1.LoadBalancerIngress{Hostname: "lb.example"})
	}
	if chance(r, 40) && len(s.Spec.ExternalIPs) > 0 {
		in = append(in, corev1.LoadBalancerIngress{IP: s.Spec.ExternalIPs[0]})
	}
	s.Status.LoadBalancer.Ingress = in
}

func sourceRanges(r *rand.Rand, s *corev1.Service) {
	s.Spec.LoadBalancerSourceRanges = nil
	if chance(r, 45) {
		return
	}
	all := []string{Allowed[0].String(), Allowed[1].String(), " " + Allowed[0].String() + " ", sloppy(Allowed[0].String()),
		PodRanges[0].String(), PodRanges[1].String(), "192.0.2.0/24", "fd00:192::/64", RemoteRanges[0].String(), RemoteRanges[1].String()}
	var kept []string
	for _, c := range all {
		if chance(r, 30) && !slices.ContainsFunc(kept, func(k string) bool { return sameRange(k, c) }) {
			kept = append(kept, c)
		}
	}
	if chance(r, 25) && !slices.Contains(kept, "192.0.2.0/24") {
		kept = append(kept, "192.0.2.0/24")
	}
	if chance(r, 12) {
		kept = append(kept, pick(r, "0.0.0.0/0", "::/0"))
	}
	s.Spec.LoadBalancerSourceRanges = kept
}

// nodePorts gives each protocol of a port number the same NodePort.
func nodePorts(r *rand.Rand, s *corev1.Service, i int) {
	s.Spec.AllocateLoadBalancerNodePorts = nil
	none := s.Spec.Type != corev1.ServiceTypeNodePort && s.Spec.Type != corev1.ServiceTypeLoadBalancer
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		none = chance(r, 25)
		s.Spec.AllocateLoadBalancerNodePorts = ptr(!none)
	}
	for k := range s.Spec.Ports {
		p := &s.Spec.Ports[k]
		p.NodePort = 0
		if !none {
			p.NodePort = 30000 + int32(i)*1000 + p.Port%1000
		}
	}
}

func policies(r *rand.Rand, s *corev1.Service) {
	s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyCluster)
	if chance(r, 30) {
		s.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
	}
	s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = "", 0
	if s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer || len(s.Spec.ExternalIPs) > 0 {
		s.Spec.ExternalTrafficPolicy = pick(r, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		s.Spec.HealthCheckNodePort = 39000 + int32(s.Name[3]-'0')
	}
}

func affinity(r *rand.Rand, s *corev1.Service) {
	s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	if chance(r, 20) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(pick(r, int32(600), 10800))}}
	}
}
