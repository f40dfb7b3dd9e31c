package dns

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// builder reads objects in a line each:
//
//	namespace NAME
//	service   NS/NAME ADDR... PORT...             PORT is NAME=80/TCP, or 80/TCP
//	headless  NS/NAME [publish] PORT...
//	external  NS/NAME TARGET
//	slice     NS/NAME SERVICE PORT... ENDPOINT... ENDPOINT is [HOST@]ADDR[!notready]
//	pod       NS/NAME ADDR...
type builder struct {
	t testing.TB
	b *cluster.Builder
}

func buildObjects(t testing.TB, text string) *cluster.Builder {
	t.Helper()
	b := builder{t, cluster.NewBuilder()}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			b.object(f[0], f[1], f[2:])
		}
	}
	return b.b
}

func (b builder) object(kind, name string, args []string) {
	ns, short, _ := strings.Cut(name, "/")
	k := cluster.Key{Namespace: ns, Name: short}
	switch kind {
	case "namespace":
		b.b.SetNamespace(&cluster.Namespace{Key: cluster.Key{Name: name}})
	case "service", "headless":
		b.b.SetService(b.service(k, kind == "headless", args))
	case "external":
		b.b.SetService(&cluster.Service{Key: k, Type: cluster.ExternalName, ExternalName: args[0]})
	case "slice":
		b.b.SetSlice(b.slice(k, args))
	case "pod":
		p := &cluster.Pod{Key: k}
		for _, a := range args {
			p.IPs = append(p.IPs, netip.MustParseAddr(a))
		}
		b.b.SetPod(p)
	default:
		b.t.Fatalf("unknown kind %q", kind)
	}
}

func (b builder) service(k cluster.Key, headless bool, args []string) *cluster.Service {
	s := &cluster.Service{Key: k, Type: cluster.ClusterIP, Headless: headless}
	for _, a := range args {
		if ip, err := netip.ParseAddr(a); err == nil {
			s.ClusterIPs = append(s.ClusterIPs, ip)
		} else if a == "publish" {
			s.PublishNotReadyAddresses = true
		} else {
			name, proto, port := b.port(a)
			s.Ports = append(s.Ports, cluster.ServicePort{Name: name, Protocol: proto, Port: port})
		}
	}
	return s
}

func (b builder) slice(k cluster.Key, args []string) *cluster.EndpointSlice {
	s := &cluster.EndpointSlice{Key: k, Service: args[0], Headless: true}
	for _, a := range args[1:] {
		if strings.Contains(a, "/") {
			name, proto, port := b.port(a)
			s.Ports = append(s.Ports, cluster.EndpointPort{Name: name, Protocol: proto, Port: port})
			continue
		}
		e := cluster.Endpoint{}
		a, not := strings.CutSuffix(a, "!notready")
		e.Ready, e.Serving = !not, !not
		if host, addr, ok := strings.Cut(a, "@"); ok {
			e.Hostname, a = host, addr
		}
		e.Address = netip.MustParseAddr(a)
		s.IPv6 = e.Address.Is6()
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func (b builder) port(text string) (string, cluster.Protocol, uint16) {
	name, rest, ok := strings.Cut(text, "=")
	if !ok {
		name, rest = "", text
	}
	number, proto, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		b.t.Fatalf("port %q: %v", text, err)
	}
	return name, map[string]cluster.Protocol{"TCP": cluster.TCP, "UDP": cluster.UDP, "SCTP": cluster.SCTP}[proto], uint16(n)
}

func testConfig() Config {
	return Config{
		Domain: mustName("cluster.local"), TTL: 30, Pods: PodsInsecure, Serial: 1,
		Service: cluster.Key{Namespace: "kube-system", Name: "kube-dns"},
	}
}

func mustName(text string) Name {
	n, err := ParseName(text)
	if err != nil {
		panic(err)
	}
	return n
}

// manyServices gives a cluster of n Services in 100 namespaces, every tenth one
// headless, with ten endpoints each.
func manyServices(n int) *cluster.Builder {
	b := cluster.NewBuilder()
	for i := range n {
		ns := fmt.Sprintf("ns-%d", i%100)
		s := &cluster.Service{
			Key: cluster.Key{Namespace: ns, Name: fmt.Sprintf("service-%d", i)}, Type: cluster.ClusterIP,
			Ports: []cluster.ServicePort{{Name: "http", Protocol: cluster.TCP, Port: 80}},
		}
		s.Headless = i%10 == 9
		if !s.Headless {
			s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)})}
		}
		b.SetService(s)
		b.SetSlice(tenEndpoints(s, i))
	}
	return b
}

func tenEndpoints(s *cluster.Service, i int) *cluster.EndpointSlice {
	sl := &cluster.EndpointSlice{
		Key: cluster.Key{Namespace: s.Namespace, Name: s.Name + "-x"}, Service: s.Name, Headless: s.Headless,
		Ports: []cluster.EndpointPort{{Name: "http", Protocol: cluster.TCP, Port: 8080}},
	}
	for e := range 10 {
		sl.Endpoints = append(sl.Endpoints, cluster.Endpoint{
			Address: netip.AddrFrom4([4]byte{10, byte(128 + e), byte(i >> 8), byte(i)}),
			Ready:   true, Hostname: fmt.Sprintf("pod-%d", e),
		})
	}
	return sl
}
