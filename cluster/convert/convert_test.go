package convert

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/cluster"
)

var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func read[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(strings.ReplaceAll(text, "\t", "  ")), out); err != nil {
		t.Fatal(err)
	}
	return out
}

func addrs(of ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range of {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

// fields gives the field paths of problems, which also must name the object and
// say something.
func fields(t *testing.T, kind string, k cluster.Key, ps []cluster.Problem) []string {
	t.Helper()
	var out []string
	for _, p := range ps {
		if p.Kind != kind || p.Key != k || len(p.Err) < 10 {
			t.Errorf("problem %q does not name %s %s, or says too little", p, kind, k)
		}
		out = append(out, p.Field)
	}
	return out
}

func TestNode(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       cluster.Node
		fields     []string
	}{
		{"dual stack, external addresses left out", `
metadata: {name: n1, uid: u, creationTimestamp: "2026-01-02T03:04:05Z", labels: {topology.kubernetes.io/zone: z}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}
status: {addresses: [{type: Hostname, address: n1}, {type: ExternalIP, address: 1.2.3.4}, {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}`,
			cluster.Node{Key: cluster.Key{Name: "n1"}, UID: "u", Created: 1767323045, Zone: "z", Addresses: addrs("192.0.2.1", "2001:db8::1"),
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")}}, nil},
		{"podCIDR alone, leading zeros, host bits", `
metadata: {name: n1}
spec: {podCIDR: 10.244.010.7/24}
status: {addresses: [{type: InternalIP, address: 192.0.002.010}]}`,
			cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: addrs("192.0.2.10"),
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.10.0/24")}}, nil},
		{"everything wrong", `
metadata: {name: n1, namespace: ignored}
spec: {podCIDRs: [10.244.1.0/33, 10.1.0.0/24, 10.2.0.0/24, 10.3.0.0]}
status: {addresses: [{type: InternalIP, address: n.example}, {type: InternalIP, address: 192.0.2.1}]}`,
			cluster.Node{Key: cluster.Key{Name: "n1"}, Addresses: addrs("192.0.2.1"),
				PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}},
			[]string{"status.addresses[0].address", "spec.podCIDRs[0]", "spec.podCIDRs[2]", "spec.podCIDRs[3]"}},
		{"bad podCIDR", `{metadata: {name: n1}, spec: {podCIDR: x}}`, cluster.Node{Key: cluster.Key{Name: "n1"}}, []string{"spec.podCIDR"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Node(read[corev1.Node](t, test.text))
			check(t, test.want, *got, got.Problems, test.fields, "Node", got.Key)
		})
	}
}

func check[T any](t *testing.T, want, got T, ps []cluster.Problem, wantFields []string, kind string, k cluster.Key) {
	t.Helper()
	if d := cmp.Diff(want, got, compareAddrs, cmpopts.IgnoreFields(*new(T), "Problems")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(wantFields, fields(t, kind, k, ps)); d != "" {
		t.Error("problems:", d)
	}
}

func TestService(t *testing.T) {
	web := cluster.Key{Namespace: "d", Name: "web"}
	http := []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80}}
	for _, test := range []struct {
		name, text string
		want       cluster.Service
		fields     []string
	}{
		{"defaults, leading zeros", `
metadata: {namespace: d, name: web}
spec: {clusterIP: 172.30.0.041, ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("172.30.0.41"), Ports: http}, nil},
		{"dual stack, the list counts, mapped address", `
metadata: {namespace: d, name: web, uid: u, labels: {service.kubernetes.io/service-proxy-name: other}}
spec: {type: NodePort, clusterIP: 1.1.1.1, clusterIPs: ["::ffff:10.0.0.1", "fd00::1"], publishNotReadyAddresses: true, ports: [{name: a, port: 80, nodePort: 30080, protocol: UDP}]}`,
			cluster.Service{Key: web, UID: "u", Type: cluster.NodePort, ClusterIPs: addrs("10.0.0.1", "fd00::1"), ProxyName: "other", PublishNotReadyAddresses: true,
				Ports: []cluster.ServicePort{{Name: "a", Protocol: cluster.UDP, Port: 80, NodePort: 30080}}}, nil},
		{"one bad address of two", `
metadata: {namespace: d, name: web}
spec: {clusterIPs: [10.0.0.1, "10.0.0.256"], ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("10.0.0.1"), Ports: http}, []string{"spec.clusterIPs[1]"}},
		{"two of a family, bad clusterIP", `
metadata: {namespace: d, name: web}
spec: {clusterIPs: [10.0.0.1, 10.0.0.2], ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("10.0.0.1"), Ports: http}, []string{"spec.clusterIPs[1]"}},
		{"bad clusterIP", `
metadata: {namespace: d, name: web}
spec: {clusterIP: ten, ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, Ports: http}, []string{"spec.clusterIP"}},
		{"headless without ports", `{metadata: {namespace: d, name: web}, spec: {clusterIP: None, clusterIPs: [None]}}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, Headless: true}, nil},
		{"none and an address", `{metadata: {namespace: d, name: web}, spec: {clusterIPs: [None, 10.0.0.1]}}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, Headless: true}, []string{"spec.clusterIPs[1]"}},
		{"external name keeps no cluster IP", `{metadata: {namespace: d, name: web}, spec: {type: ExternalName, externalName: e.example, clusterIP: 10.0.0.1}}`,
			cluster.Service{Key: web, Type: cluster.ExternalName, ExternalName: "e.example"}, nil},
		{"external name without it", `{metadata: {namespace: d, name: web}, spec: {type: ExternalName}}`,
			cluster.Service{Key: web, Type: cluster.ExternalName}, []string{"spec.externalName"}},
		{"unknown type", `{metadata: {namespace: d, name: web}, spec: {type: Cluster, clusterIP: 10.0.0.1}}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("10.0.0.1")}, []string{"spec.type"}},
		{"ports", `
metadata: {namespace: d, name: web}
spec:
  ports:
  - {name: a, port: 53}
  - {name: b, port: 53, protocol: UDP}
  - {name: c, port: 53}
  - {name: a, port: 54}
  - {name: d, port: 0}
  - {name: e, port: 65536}
  - {name: f, port: 1, protocol: ICMP}
  - {name: G_, port: 2}
  - {name: h, port: 65535, protocol: SCTP, nodePort: 70000}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, Ports: []cluster.ServicePort{
				{Name: "a", Protocol: cluster.TCP, Port: 53}, {Name: "b", Protocol: cluster.UDP, Port: 53}, {Name: "h", Protocol: cluster.SCTP, Port: 65535}}},
			[]string{"spec.ports[2].port", "spec.ports[3].name", "spec.ports[4].port", "spec.ports[5].port", "spec.ports[6].protocol", "spec.ports[7].name", "spec.ports[8].nodePort"}},
		{"the outside", `
metadata: {namespace: d, name: web, annotations: {podlane.dev/count-endpoints: "true"}}
spec:
  type: LoadBalancer
  clusterIP: 10.0.0.1
  ports: [{port: 80, nodePort: 30080}]
  externalIPs: [203.0.113.007, "2001:db8::7", 203.0.113.7, 127.0.0.1, x]
  loadBalancerSourceRanges: [" 203.0.113.000/025 ", "2001:db8::/32", nonsense]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  healthCheckNodePort: 32000
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: Proxy}, {ip: 192.0.2.3, ipMode: VIP}, {hostname: lb.example}]}}`,
			cluster.Service{Key: web, Type: cluster.LoadBalancer, ClusterIPs: addrs("10.0.0.1"),
				Ports:           []cluster.ServicePort{{Protocol: cluster.TCP, Port: 80, NodePort: 30080}},
				ExternalIPs:     addrs("203.0.113.7", "2001:db8::7"),
				LoadBalancerIPs: addrs("192.0.2.1", "192.0.2.3"),
				SourceRanges:    []netip.Prefix{netip.MustParsePrefix("203.0.113.0/25"), netip.MustParsePrefix("2001:db8::/32")},
				InternalLocal:   true, ExternalLocal: true, HealthCheckNodePort: 32000, Affinity: 60, CountEndpoints: true},
			[]string{"spec.externalIPs[3]", "spec.externalIPs[4]", "spec.loadBalancerSourceRanges[2]"}},
		{"an external policy without an outside; affinity's default", `
metadata: {namespace: d, name: web}
spec: {clusterIP: 10.0.0.1, externalTrafficPolicy: Local, healthCheckNodePort: 32000, sessionAffinity: ClientIP, ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("10.0.0.1"), Ports: http, Affinity: 10800}, nil},
		{"affinity out of bounds", `
metadata: {namespace: d, name: web}
spec: {clusterIP: 10.0.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ports: [{port: 80}]}`,
			cluster.Service{Key: web, Type: cluster.ClusterIP, ClusterIPs: addrs("10.0.0.1"), Ports: http, Affinity: 86400},
			[]string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Service(read[corev1.Service](t, test.text))
			check(t, test.want, *got, got.Problems, test.fields, "Service", web)
		})
	}
}

func TestEndpointSlice(t *testing.T) {
	k := cluster.Key{Namespace: "d", Name: "web-1"}
	meta := "metadata: {namespace: d, name: web-1, labels: {kubernetes.io/service-name: web}}\n"
	up := cluster.Endpoint{Address: netip.MustParseAddr("10.244.0.2"), Ready: true, Serving: true}
	for _, test := range []struct {
		name, text string
		want       cluster.EndpointSlice
		fields     []string
	}{
		{"defaults", meta + `
addressType: IPv4
ports: [{port: 80}, {name: all}]
endpoints: [{addresses: [10.244.0.002, 10.244.0.3]}]`,
			cluster.EndpointSlice{Key: k, Service: "web", Ports: []cluster.EndpointPort{{Protocol: cluster.TCP, Port: 80}}, Endpoints: []cluster.Endpoint{up}}, nil},
		{"everything", `
metadata: {namespace: d, name: web-1, labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ""}}
addressType: IPv6
ports: [{name: q, port: 443, protocol: UDP}]
endpoints:
- addresses: ["fd00::2"]
  conditions: {ready: false, serving: true, terminating: true}
  hostname: h
  nodeName: n1
  zone: z
  targetRef: {kind: Pod, name: p}
  hints: {forZones: [{name: z}], forNodes: [{name: n1}]}
- addresses: ["fd00::3"]
  conditions: {ready: false, serving: false}
  targetRef: {kind: VM, namespace: x, name: v}`,
			cluster.EndpointSlice{Key: k, Service: "web", Headless: true, IPv6: true, Ports: []cluster.EndpointPort{{Name: "q", Protocol: cluster.UDP, Port: 443}},
				Endpoints: []cluster.Endpoint{
					{Address: netip.MustParseAddr("fd00::2"), Serving: true, Terminating: true, Hostname: "h", Node: "n1", Zone: "z",
						Pod: cluster.Key{Namespace: "d", Name: "p"}, ZoneHints: []string{"z"}, NodeHints: []string{"n1"}},
					{Address: netip.MustParseAddr("fd00::3")}}}, nil},
		{"bad endpoints leave the good one", meta + `
addressType: IPv4
ports: [{name: a, port: 70000}, {name: b, port: 1, protocol: X}, {name: "C!", port: 1}]
endpoints:
- {addresses: [x]}
- {addresses: []}
- {addresses: ["fd00::2"]}
- {addresses: [127.0.0.1]}
- {addresses: [0.0.0.0]}
- {addresses: [169.254.0.1]}
- {addresses: [224.0.0.1]}
- {addresses: [10.244.0.2]}`,
			cluster.EndpointSlice{Key: k, Service: "web", Endpoints: []cluster.Endpoint{up}},
			[]string{"ports[0].port", "ports[1].protocol", "ports[2].name", "endpoints[0].addresses[0]", "endpoints[1].addresses", "endpoints[2].addresses[0]",
				"endpoints[3].addresses[0]", "endpoints[4].addresses[0]", "endpoints[5].addresses[0]", "endpoints[6].addresses[0]"}},
		{"no address type", meta + `endpoints: [{addresses: [10.244.0.2]}]`, cluster.EndpointSlice{Key: k, Service: "web"}, []string{"addressType"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := EndpointSlice(read[discoveryv1.EndpointSlice](t, test.text))
			check(t, test.want, *got, got.Problems, test.fields, "EndpointSlice", k)
		})
	}
}

func TestEndpointSlice_notUsed(t *testing.T) {
	named := metav1.ObjectMeta{Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}
	for name, s := range map[string]*discoveryv1.EndpointSlice{
		"no service": {AddressType: discoveryv1.AddressTypeIPv4},
		"FQDN":       {ObjectMeta: named, AddressType: discoveryv1.AddressTypeFQDN},
	} {
		if got := EndpointSlice(s); got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestServiceCIDR(t *testing.T) {
	got := ServiceCIDR(read[networkingv1.ServiceCIDR](t, `{metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.7/12, "fd00::/108", x]}}`))
	check(t, cluster.ServiceCIDR{Key: cluster.Key{Name: "kubernetes"}, CIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00::/108")}},
		*got, got.Problems, []string{"spec.cidrs[2]"}, "ServiceCIDR", got.Key)
}

func TestPod(t *testing.T) {
	k := cluster.Key{Namespace: "d", Name: "p"}
	for _, test := range []struct {
		name, text string
		want       cluster.Pod
		fields     []string
	}{
		{"ready, dual stack", `
metadata: {namespace: d, name: p, uid: u}
spec: {nodeName: n1, hostname: h, subdomain: s}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], conditions: [{type: Ready, status: "True"}]}`,
			cluster.Pod{Key: k, UID: "u", Node: "n1", IPs: addrs("10.0.0.1", "fd00::1"), Ready: true, Hostname: "h", Subdomain: "s"}, nil},
		{"done, host network, podIP alone", `
metadata: {namespace: d, name: p}
spec: {nodeName: n1, hostNetwork: true}
status: {phase: Failed, podIP: 10.0.0.1, conditions: [{type: Ready, status: "False"}]}`,
			cluster.Pod{Key: k, Node: "n1", IPs: addrs("10.0.0.1"), HostNetwork: true, Done: true}, nil},
		{"succeeded, bad address", `
metadata: {namespace: d, name: p}
spec: {nodeName: n1}
status: {phase: Succeeded, podIPs: [{ip: x}]}`,
			cluster.Pod{Key: k, Node: "n1", Done: true}, []string{"status.podIPs[0].ip"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Pod(read[corev1.Pod](t, test.text))
			check(t, test.want, *got, got.Problems, test.fields, "Pod", k)
		})
	}
	if got := Pod(&corev1.Pod{}); got != nil {
		t.Errorf("a pod without a node gave %v", got)
	}
}
