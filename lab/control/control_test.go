package control

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cluster/file"
)

func read(t *testing.T, text string) *file.Objects {
	t.Helper()
	path := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	objects, problems, err := file.Read(path)
	if err != nil || len(problems) > 0 {
		t.Fatalf("test's own objects: %v, %v", err, problems)
	}
	return objects
}

func config(t *testing.T, families string) Config {
	t.Helper()
	c, err := Default(families)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func deployment(name string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec: {containers: [{name: c, image: nginx, ports: [{name: http, containerPort: 80}]}]}
---`, name, replicas)
}

func service(name, spec string) string {
	return fmt.Sprintf("\napiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {%s}\n---", name, spec)
}

func pod(name, labels, spec string) string {
	return fmt.Sprintf("\napiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {%s}}\nspec: {%s}\n---", name, labels, spec)
}

func node(name, labels, spec, addr string) string {
	return fmt.Sprintf("\napiVersion: v1\nkind: Node\nmetadata: {name: %s, labels: {%s}}\nspec: {%s}\nstatus: {addresses: [{type: InternalIP, address: %s}]}\n---", name, labels, spec, addr)
}

// perNode counts the pods on each node by the beginning of their names.
func perNode(o *file.Objects, prefix string) map[string]int {
	count := map[string]int{}
	for _, p := range o.Pods {
		if strings.HasPrefix(p.Name, prefix) {
			count[p.Spec.NodeName]++
		}
	}
	return count
}

func TestPlace(t *testing.T) {
	container := "containers: [{name: c, image: busybox}]"
	for _, tc := range []struct {
		name, objects, prefix string
		want                  map[string]int
	}{
		{"spread", deployment("web", 5), "web", map[string]int{"n1": 3, "n2": 2}},
		{"each Deployment by itself", deployment("a", 1) + deployment("b", 2), "b", map[string]int{"n1": 1, "n2": 1}},
		{"the emptier node first", deployment("a", 1) + deployment("b", 1), "b", map[string]int{"n2": 1}},
		{"node name", deployment("a", 1) + pod("p", "", "nodeName: n1, "+container), "p", map[string]int{"n1": 1}},
		{"node selector", pod("p", "", `nodeSelector: {kubernetes.io/hostname: n2}, `+container), "p", map[string]int{"n2": 1}},
		{"no node suits", pod("p", "", `nodeSelector: {disk: ssd}, `+container), "p", map[string]int{"": 1}},
		{"none", deployment("web", 0), "web", map[string]int{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems := config(t, "ipv4").Simulate(read(t, tc.objects))
			if d := cmp.Diff(tc.want, perNode(got, tc.prefix)); d != "" || len(problems) > 0 {
				t.Errorf("pods by node (-want +got):\n%s%v", d, problems)
			}
		})
	}
}

// TestExpand_podsStay adds a Deployment whose name sorts first and a node: pods
// that were seen stay where they are.
func TestExpand_podsStay(t *testing.T) {
	c := config(t, "ipv4")
	first := read(t, deployment("web", 3))
	first.Nodes = Nodes(2)
	admitted, _ := c.Admit(first)
	observed := map[cluster.Key]Observed{}
	for _, p := range Expand(admitted, nil).Pods {
		observed[keyOf(p)] = Observed{Node: p.Spec.NodeName}
	}
	more := read(t, deployment("a", 4)+deployment("web", 3))
	more.Nodes = Nodes(3)
	admitted, _ = c.Admit(more)
	for _, p := range Expand(admitted, observed).Pods {
		if was := observed[keyOf(p)].Node; was != "" && was != p.Spec.NodeName {
			t.Errorf("%s moved from %s to %s", p.Name, was, p.Spec.NodeName)
		}
		delete(observed, keyOf(p))
	}
	if len(observed) > 0 {
		t.Errorf("pods that are gone: %v", observed)
	}
}

func TestAdmit_services(t *testing.T) {
	ports := "ports: [{port: 80}]"
	for _, tc := range []struct {
		name, families, spec string
		want                 []string // "v4", "v6" for any of the range
		problem              string
	}{
		{"one family by default", "dual", ports, []string{"v4"}, ""},
		{"IPv6 cluster", "ipv6", ports, []string{"v6"}, ""},
		{"dual", "dual", "ipFamilyPolicy: PreferDualStack, " + ports, []string{"v4", "v6"}, ""},
		{"dual in a cluster of one", "ipv4", "ipFamilyPolicy: PreferDualStack, " + ports, []string{"v4"}, ""},
		{"named family", "dual", "ipFamilies: [IPv6], " + ports, []string{"v6"}, ""},
		{"given", "dual", "clusterIP: 10.96.1.1, " + ports, []string{"10.96.1.1"}, ""},
		{"given both", "dual", "clusterIP: 10.96.1.1, clusterIPs: [10.96.1.1, \"fd00:10:96::101\"], " + ports, []string{"10.96.1.1", "fd00:10:96::101"}, ""},
		{"given one of two", "dual", "clusterIP: 10.96.1.1, ipFamilyPolicy: PreferDualStack, " + ports, []string{"v4", "v6"}, ""},
		{"headless", "dual", "clusterIP: None, " + ports, nil, ""},
		{"external name", "dual", "type: ExternalName, externalName: example.org", nil, ""},
		{"no address", "dual", "clusterIP: 10.96.0.256, " + ports, nil, "spec.clusterIP"},
		{"not of the cluster", "dual", "clusterIP: 10.97.0.1, " + ports, nil, "spec.clusterIPs"},
		{"IPv6 in an IPv4 cluster", "ipv4", "clusterIP: \"fd00:10:96::1\", " + ports, nil, "spec.clusterIPs"},
		{"taken", "dual", "clusterIP: 10.96.77.77, " + ports, nil, "spec.clusterIPs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config(t, tc.families)
			objects := read(t, service("web", tc.spec))
			if tc.name == "taken" {
				objects = read(t, service("a", "clusterIP: 10.96.77.77, "+ports)+service("web", tc.spec))
			}
			got, problems := c.Admit(objects)
			if tc.problem != "" {
				if len(problems) != 1 || problems[0].Key.String() != "default/web" || !strings.HasPrefix(problems[0].Field, tc.problem) {
					t.Errorf("problems %v, want one of default/web's %s", problems, tc.problem)
				}
				return
			}
			if len(problems) > 0 || len(got.Services) != 1 {
				t.Fatalf("problems %v", problems)
			}
			if ips := ranges(c, got.Services[0].Spec.ClusterIPs); !slices.Equal(ips, tc.want) && !slices.Equal(got.Services[0].Spec.ClusterIPs, tc.want) {
				t.Errorf("cluster IPs %v, want %v", got.Services[0].Spec.ClusterIPs, tc.want)
			}
		})
	}
}

func ranges(c Config, ips []string) []string {
	var out []string
	for _, ip := range ips {
		for _, f := range c {
			if f.Services.Contains(netip.MustParseAddr(ip)) {
				out = append(out, map[bool]string{true: "v4", false: "v6"}[f.Services.Addr().Is4()])
			}
		}
	}
	return out
}

// TestAdmit_manyServices makes names collide in the range of addresses.
func TestAdmit_manyServices(t *testing.T) {
	var text strings.Builder
	for i := range 2000 {
		text.WriteString(service(fmt.Sprintf("s%d", i), "ports: [{port: 80}]"))
	}
	got, problems := config(t, "ipv4").Admit(read(t, text.String()))
	seen := map[string]bool{"10.96.0.10": true}
	for _, s := range got.Services {
		if seen[s.Spec.ClusterIP] || s.Spec.ClusterIP == "" {
			t.Fatalf("%s: %q is taken", s.Name, s.Spec.ClusterIP)
		}
		seen[s.Spec.ClusterIP] = true
	}
	if len(got.Services) != 2000 || len(problems) > 0 {
		t.Errorf("%d services, %v", len(got.Services), problems)
	}
}

func TestAdmit_nodes(t *testing.T) {
	good := node("a", "", "podCIDRs: [10.9.0.0/16]", "172.20.0.2")
	for _, tc := range []struct {
		name, objects, problem string
		left                   []string
	}{
		{"overlap", good + node("b", "", "podCIDRs: [10.9.3.0/24]", "172.20.0.3"), "Node b: spec.podCIDRs: 10.9.3.0/24 overlaps 10.9.0.0/16 of Node a: the Node is left out", []string{"a"}},
		{"one address twice", good + node("b", "", "podCIDRs: [10.8.0.0/24]", "172.20.0.2"), "Node b: status.addresses: 172.20.0.2 is taken by Node a: the Node is left out", []string{"a"}},
		{"no CIDR", good + node("b", "", "podCIDRs: [10.8.0.0/99]", "172.20.0.3"), "Node b: spec.podCIDRs[0]", []string{"a"}},
		{"fine", good + node("b", "", "podCIDR: 10.8.0.0/24", "172.20.0.3"), "", []string{"a", "b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems := config(t, "ipv4").Admit(read(t, tc.objects))
			var left []string
			for _, n := range got.Nodes {
				left = append(left, n.Name)
			}
			if !slices.Equal(left, tc.left) || (tc.problem == "") != (len(problems) == 0) || tc.problem != "" && !strings.HasPrefix(problems[0].String(), tc.problem) {
				t.Errorf("nodes %v, problems %v; want %v, %q", left, problems, tc.left, tc.problem)
			}
		})
	}
}

// TestAdmit_nodesCompleted gives what is free, beside what others name.
func TestAdmit_nodesCompleted(t *testing.T) {
	objects := read(t, node("z", "", "podCIDRs: [10.244.1.0/24]", "192.168.200.1"))
	objects.Nodes = append(objects.Nodes, Nodes(1)...)
	got, problems := config(t, "dual").Admit(objects)
	n1 := convert.Node(got.Nodes[0])
	want := "n1 [192.168.200.2 fd00:192:168:200::1] [10.244.2.0/24 fd00:10:244:1::/64]"
	if s := fmt.Sprint(n1.Name, " ", n1.Addresses, " ", n1.PodCIDRs); s != want || len(problems) > 0 {
		t.Errorf("got %s, %v; want %s", s, problems, want)
	}
}

// text prints slices in short, for comparing: name, family, ports, endpoints.
func text(slices []*discoveryv1.EndpointSlice) string {
	var b strings.Builder
	for _, e := range slices {
		s := convert.EndpointSlice(e)
		fmt.Fprintf(&b, "%s headless=%v:", s.Service, s.Headless)
		for _, p := range s.Ports {
			fmt.Fprintf(&b, " %s/%d", p.Protocol, p.Port)
		}
		for _, e := range s.Endpoints {
			fmt.Fprintf(&b, " [%s %s", e.Address, e.Node)
			for _, extra := range []struct {
				show bool
				text string
			}{{e.Zone != "", " zone=" + e.Zone}, {e.Hostname != "", " host=" + e.Hostname}, {!e.Ready, " notready"}, {len(e.NodeHints) > 0, " for=" + strings.Join(e.NodeHints, ",")}} {
				if extra.show {
					b.WriteString(extra.text)
				}
			}
			b.WriteString("]")
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestDerive(t *testing.T) {
	nodes := node("n1", "topology.kubernetes.io/zone: z1", "podCIDRs: [10.1.0.0/24, \"fd01::/64\"]", "172.20.0.2") + node("n2", "", "podCIDRs: [10.2.0.0/24, \"fd02::/64\"]", "172.20.0.3")
	web := func(name, node, port string) string {
		return pod(name, "app: web", "nodeName: "+node+", containers: [{name: c, image: nginx, ports: ["+port+"]}]")
	}
	two := web("a", "n1", "{name: http, containerPort: 80}") + web("b", "n2", "{name: http, containerPort: 80}")
	for _, tc := range []struct{ name, objects, want string }{
		{"number", two + service("s", "selector: {app: web}, ports: [{port: 8000, targetPort: 80}]"), "s headless=false: TCP/80 [10.1.0.2 n1 zone=z1] [10.2.0.2 n2]\n"},
		{"the port itself", two + service("s", "selector: {app: web}, ports: [{port: 8000}]"), "s headless=false: TCP/8000 [10.1.0.2 n1 zone=z1] [10.2.0.2 n2]\n"},
		{"name", two + service("s", "selector: {app: web}, ports: [{port: 8000, targetPort: http}]"), "s headless=false: TCP/80 [10.1.0.2 n1 zone=z1] [10.2.0.2 n2]\n"},
		{"name of other numbers", web("a", "n1", "{name: http, containerPort: 80}") + web("b", "n2", "{name: http, containerPort: 81}") +
			service("s", "selector: {app: web}, ports: [{port: 8000, targetPort: http}]"), "s headless=false: TCP/80 [10.1.0.2 n1 zone=z1]\ns headless=false: TCP/81 [10.2.0.2 n2]\n"},
		{"name of the other protocol", web("a", "n1", "{name: q, containerPort: 53, protocol: UDP}") +
			service("s", "selector: {app: web}, ports: [{port: 1, name: t, targetPort: q}, {port: 1, name: u, protocol: UDP, targetPort: q}]"), "s headless=false: UDP/53 [10.1.0.2 n1 zone=z1]\n"},
		{"dual", two + service("s", "ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80}]"),
			"s headless=false: TCP/80 [10.1.0.2 n1 zone=z1] [10.2.0.2 n2]\ns headless=false: TCP/80 [fd01::2 n1 zone=z1] [fd02::2 n2]\n"},
		{"headless with a hostname", pod("a", "app: web", "hostname: h, subdomain: s, nodeName: n2, containers: [{name: c, image: nginx}]") +
			service("s", "clusterIP: None, selector: {app: web}"), "s headless=true: [10.2.0.2 n2 host=h]\n"},
		{"another subdomain", pod("a", "app: web", "hostname: h, subdomain: x, nodeName: n2, containers: [{name: c, image: nginx}]") +
			service("s", "clusterIP: None, selector: {app: web}"), "s headless=true: [10.2.0.2 n2]\n"},
		{"same node", two + service("s", "trafficDistribution: PreferSameNode, selector: {app: web}, ports: [{port: 80}]"),
			"s headless=false: TCP/80 [10.1.0.2 n1 zone=z1 for=n1] [10.2.0.2 n2 for=n2]\n"},
		{"host network", pod("a", "app: web", "hostNetwork: true, nodeName: n2, containers: [{name: c, image: nginx}]") +
			service("s", "selector: {app: web}, ports: [{port: 80}]"), "s headless=false: TCP/80 [172.20.0.3 n2]\n"},
		{"no selector", two + service("s", "ports: [{port: 80}]"), ""},
		{"nobody", two + service("s", "selector: {app: other}, ports: [{port: 80}]"), ""},
		{"slices that are there", two + service("s", "selector: {app: web}, ports: [{port: 80}]") + `
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mine, labels: {kubernetes.io/service-name: s}}
addressType: IPv4
ports: [{name: "", port: 1}]
endpoints: [{addresses: [10.1.0.99]}]
---`, "s headless=false: TCP/1 [10.1.0.99 ]\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, problems := config(t, "dual").Simulate(read(t, nodes+tc.objects))
			if d := cmp.Diff(tc.want, text(got.EndpointSlices)); d != "" || len(problems) > 0 {
				t.Errorf("slices (-want +got):\n%s%v", d, problems)
			}
		})
	}
}

func TestExpand_readiness(t *testing.T) {
	objects := read(t, pod("a", "app: web", "nodeName: n1, containers: [{name: c, image: nginx}]")+pod("b", "app: web", "nodeName: n1, containers: [{name: c, image: nginx}]")+
		service("s", "selector: {app: web}, ports: [{port: 80}]")+service("t", "publishNotReadyAddresses: true, selector: {app: web}, ports: [{port: 80}]"))
	objects.Nodes = Nodes(1)
	admitted, _ := config(t, "ipv4").Admit(objects)
	got := Expand(admitted, map[cluster.Key]Observed{
		{Namespace: "default", Name: "a"}: {Node: "n1", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}, // b has no address yet
	})
	want := "s headless=false: TCP/80 [10.244.1.2 n1 notready]\nt headless=false: TCP/80 [10.244.1.2 n1]\n"
	if d := cmp.Diff(want, text(got.EndpointSlices)); d != "" {
		t.Errorf("slices (-want +got):\n%s", d)
	}
}

// TestSimulate_dump takes a dump of a cluster, in which pods have owners and
// addresses: nothing is made twice or given another address.
func TestSimulate_dump(t *testing.T) {
	dump := deployment("web", 1) + `
apiVersion: v1
kind: Pod
metadata: {name: web-1-x, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-1, uid: u}]}
spec: {nodeName: n1, containers: [{name: c, image: nginx}]}
status: {podIP: 10.244.1.77, podIPs: [{ip: 10.244.1.77}]}
---` + service("s", "selector: {app: web}, ports: [{port: 80}]")
	got, problems := config(t, "ipv4").Simulate(read(t, dump))
	if want := "s headless=false: TCP/80 [10.244.1.77 n1]\n"; text(got.EndpointSlices) != want || len(got.Pods) != 1 || len(problems) > 0 {
		t.Errorf("got %q of %d pods, %v; want %q of 1", text(got.EndpointSlices), len(got.Pods), problems, want)
	}
}

// TestSimulate_order gives the same for any order of the same objects, and leaves
// what it was given as it was.
func TestSimulate_order(t *testing.T) {
	objects := read(t, deployment("a", 3)+deployment("b", 4)+service("a", "selector: {app: a}, ports: [{port: 80}]")+service("b", "selector: {app: b}, ports: [{port: 80}]")+
		pod("p", "app: a", "containers: [{name: c, image: nginx}]")+node("x", "", "", "172.20.0.9")+node("w", "", "podCIDRs: [10.7.0.0/24]", "172.20.0.8"))
	c := config(t, "dual")
	print := func(o *file.Objects) string {
		out, _ := c.Simulate(o)
		text, err := yaml.Marshal(out)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	given, _ := yaml.Marshal(objects)
	want := print(objects)
	if after, _ := yaml.Marshal(objects); string(after) != string(given) {
		t.Error("the objects given were changed")
	}
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		mixed := *objects
		mixed.Deployments, mixed.Services, mixed.Nodes = shuffled(r, objects.Deployments), shuffled(r, objects.Services), shuffled(r, objects.Nodes)
		if d := cmp.Diff(want, print(&mixed)); d != "" {
			t.Fatalf("seed %d: another order, another cluster (-first +now):\n%s", seed, d)
		}
	}
}

func shuffled[T any](r *rand.Rand, of []T) []T {
	out := slices.Clone(of)
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// TestAdmit_again admits what was admitted: nothing changes.
func TestAdmit_again(t *testing.T) {
	objects := read(t, service("a", "ports: [{port: 80}]")+service("b", "ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]")+service("c", "clusterIP: None, ports: [{port: 80}]"))
	objects.Nodes = Nodes(3)
	c := config(t, "dual")
	once, _ := c.Admit(objects)
	twice, problems := c.Admit(once)
	if !reflect.DeepEqual(once, twice) || len(problems) > 0 {
		t.Errorf("admitted again (-once +twice):\n%s%v", cmp.Diff(once, twice), problems)
	}
}
