package explain_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/lab/control"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// world makes a cluster of manifests in which all nodes are on one segment.
func world(t *testing.T, mode overlay.Mode, manifests string) explain.World {
	t.Helper()
	objects, problems := file.Parse("test.yaml", []byte(manifests))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	config, err := control.Default("dual")
	if err != nil {
		t.Fatal(err)
	}
	simulated, problems := config.Simulate(lab.WithSystem(config, objects))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	s := simulated.Snapshot("")
	return explain.World{Snapshot: s, Compile: func(node string) *plan.Plan { return compile(s, mode, node) }}
}

func compile(s *cluster.Snapshot, mode overlay.Mode, node string) *plan.Plan {
	n := s.Nodes.Get(cluster.Key{Name: node})
	if n == nil {
		return nil
	}
	in := plan.Input{Node: node, Snapshot: s, Overlay: overlay.Config{Mode: mode, Cluster: "podlane"}, Underlay: link.Underlay{Device: "eth0", MTU: 1500}}
	for _, a := range n.Addresses {
		in.Underlay.Addrs = append(in.Underlay.Addrs, netip.PrefixFrom(a, map[bool]int{false: 24, true: 64}[a.Is6()]))
	}
	for _, k := range s.Pods.Keys() {
		if p := s.Pods.Get(k); p.Node == node && !p.HostNetwork {
			in.Pods = append(in.Pods, overlay.Pod{Link: "pl" + k.Name, Addrs: p.IPs, MAC: link.MAC{2, 0, 0, 0, 0, 1}})
		}
	}
	return plan.CompileAll(in)
}

const web = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n1, containers: [{name: c, image: curl}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, image: nginx}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.1.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec: {clusterIP: 10.96.1.2, selector: {app: none}, ports: [{port: 80}]}
`

// describe gives the verdict, and for each path endpoint, probability, source and
// the stages out and back.
func describe(a *explain.Answer) string {
	lines := []string{string(a.Verdict)}
	for _, p := range a.Paths {
		stages := func(hops []explain.Hop) string {
			var l []string
			for _, h := range hops {
				l = append(l, h.Node+":"+string(h.Stage))
			}
			return strings.Join(l, " ")
		}
		lines = append(lines, strings.Join([]string{p.To.String(), p.Fraction, p.Source.String(), stages(p.Forward), "|", stages(p.Back)}, " "))
	}
	slices.Sort(lines[1:])
	return strings.TrimRight(strings.ReplaceAll(strings.Join(lines, "\n"), " \n", "\n"), " ")
}

func TestExplain(t *testing.T) {
	tests := []struct {
		name, from, to string
		mode           overlay.Mode
		want           string
	}{
		{"pod to Service, VXLAN", "client", "web:80", overlay.VXLAN, `delivered
10.244.1.3:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:pod n1:arrive | n1:pod n1:source n1:pod
10.244.2.2:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:vxlan n1:underlay n2:vxlan n2:route n2:pod n2:arrive | n2:pod n2:vxlan n1:source n1:pod`},
		{"node to Service, VXLAN", "node/n1", "svc/web", overlay.VXLAN, `delivered
10.244.1.3:8080 1/2 10.244.1.1 n1:send n1:service n1:source n1:route n1:pod n1:arrive | n1:pod n1:source
10.244.2.2:8080 1/2 10.244.1.1 n1:send n1:service n1:source n1:route n1:vxlan n1:underlay n2:vxlan n2:route n2:pod n2:arrive | n2:pod n2:vxlan n1:source`},
		{"a pod that may reach itself", "near", "svc/web", overlay.Direct, `delivered
10.244.1.3:8080 1/2 10.244.1.1 n1:pod n1:service n1:source n1:route n1:pod n1:arrive | n1:pod n1:source n1:pod
10.244.2.2:8080 1/2 10.244.1.3 n1:pod n1:service n1:route n1:underlay n2:route n2:pod n2:arrive | n2:pod n2:route n1:source n1:pod`},
		{"a Service without endpoints", "client", "empty:80", overlay.Auto, "refused\n10.96.1.2:80 1 10.244.1.2 n1:pod n1:service |"},
		{"an address no pod has", "client", "10.244.2.200:80", overlay.VXLAN,
			"unreachable\n10.244.2.200:80 1 10.244.1.2 n1:pod n1:route n1:vxlan n1:underlay n2:vxlan n2:route |"},
		{"out of the cluster", "client", "203.0.113.9:443", overlay.VXLAN, "leaves\n203.0.113.9:443 1 10.244.1.2 n1:pod n1:route |"},
		{"from outside to a pod", "203.0.113.9", "default/far", overlay.VXLAN,
			"delivered\n10.244.2.2:8080 1 203.0.113.9 n2:underlay n2:route n2:pod n2:arrive | n2:pod n2:underlay"},
		{"a pod to another node", "client", "192.168.200.2:22", overlay.VXLAN,
			"delivered\n192.168.200.2:22 1 10.244.1.2 n1:pod n1:route n1:underlay n2:arrive | n2:vxlan n1:pod"},
		{"no such name", "client", "nobody:80", overlay.Auto, "no-name"},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			a, err := explain.Explain(world(t, tc.mode, web), explain.Access{From: tc.from, To: tc.to, Protocol: cluster.TCP})
			if err != nil {
				t.Fatal(err)
			}
			if got := describe(a); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

func TestExplain_notFound(t *testing.T) {
	for _, a := range []explain.Access{
		{From: "nobody", To: "web:80"}, {From: "client", To: "svc/nobody:80"}, {From: "node/n9", To: "web:80"},
		{From: "client", To: "default/nobody"}, {From: "outside", To: "web:80"},
	} {
		a.Protocol = cluster.TCP
		_, err := explain.Explain(world(t, overlay.Auto, web), a)
		var nf *explain.NotFoundError
		if !errors.As(err, &nf) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s to %s: %v", a.From, a.To, err)
		}
	}
}

// The names a resolver asks for, and which were asked in vain.
func TestExplain_search(t *testing.T) {
	tests := []struct {
		name  string
		tries []string
	}{
		{"web", []string{"web.default.svc.cluster.local."}},
		{"web.default", []string{"web.default.default.svc.cluster.local.", "web.default.svc.cluster.local."}},
		{"web.default.svc", []string{"web.default.svc.default.svc.cluster.local.", "web.default.svc.svc.cluster.local.", "web.default.svc.cluster.local."}},
		{"web.default.svc.cluster.local.", []string{"web.default.svc.cluster.local."}},
	}
	for _, tc := range tests {
		a, err := explain.Explain(world(t, overlay.Auto, web), explain.Access{From: "client", To: tc.name + ":80", Protocol: cluster.TCP})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, try := range a.Name.Tries {
			got = append(got, try.Name)
			if last := i == len(a.Name.Tries)-1; try.Wasted == last {
				t.Errorf("%s: %s wasted: %v", tc.name, try.Name, try.Wasted)
			}
		}
		if !slices.Equal(got, tc.tries) {
			t.Errorf("%s: tried %q, want %q", tc.name, got, tc.tries)
		}
	}
}

// Every drawing has all nodes and pods of the paths, and the text every object.
func TestAnswer_outputs(t *testing.T) {
	a, err := explain.Explain(world(t, overlay.VXLAN, web), explain.Access{From: "client", To: "web:80", Protocol: cluster.TCP})
	if err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(*strings.Builder) error{
		"dot": func(b *strings.Builder) error { return a.DOT(b) }, "mermaid": func(b *strings.Builder) error { return a.Mermaid(b) },
		"svg": func(b *strings.Builder) error { return a.SVG(b) }, "text": func(b *strings.Builder) error { return a.Text(b) },
	} {
		var b strings.Builder
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"n1", "n2", "default/client", "default/near", "default/far", "1/2", "10.96.1.1:80"} {
			if !strings.Contains(b.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, b.String())
			}
		}
	}
}
