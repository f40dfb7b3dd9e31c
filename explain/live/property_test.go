package live_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/lab"
)

var (
	accesses = flag.Int("accesses", 60, "accesses of the property test")
	clusters = flag.Int("clusters", 4, "random clusters of the property test")
)

// random makes clusters and accesses.
type random struct {
	*rand.Rand
	nodes    int
	pods     []string
	services []string
	text     strings.Builder
}

func (r *random) add(format string, args ...any) { fmt.Fprintf(&r.text, "---\n"+format, args...) }

// cluster makes pods that serve on port 80, some never ready, on two or three
// nodes in one or two segments, and Services of all kinds over them.
func (r *random) cluster() string {
	r.nodes = 2 + r.IntN(2)
	for i := range r.nodes {
		segment := 0
		if i > 0 && r.IntN(3) == 0 {
			segment = 1
		}
		r.add("apiVersion: v1\nkind: Node\nmetadata: {name: n%d, labels: {topology.kubernetes.io/zone: z%d}}\nstatus: {addresses: [{type: InternalIP, address: 192.168.%d.%d}]}\n", i+1, r.IntN(2), 100+segment, 11+i)
	}
	for i := range 5 + r.IntN(4) {
		name := fmt.Sprintf("p%d", i)
		ready := "{containerPort: 80}, {containerPort: 5000, protocol: UDP}"
		probe := ""
		if r.IntN(6) == 0 {
			probe = ", readinessProbe: {exec: {command: [\"false\"]}}"
		}
		r.add("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, labels: {a%d: x, b%d: x}}\nspec: {nodeName: n%d, containers: [{name: c, image: nginx, ports: [%s]%s}]}\n",
			name, r.IntN(2), r.IntN(3), 1+r.IntN(r.nodes), ready, probe)
		r.pods = append(r.pods, name)
	}
	for i, selector := range []string{"a0", "a1", "b0", "b1", "b2", "none"} {
		name := fmt.Sprintf("s%d", i)
		policy, kind := "", "ClusterIP"
		if r.IntN(4) == 0 {
			policy += ", internalTrafficPolicy: Local"
		}
		nodePort := ""
		if r.IntN(2) == 0 {
			kind, nodePort = "NodePort", fmt.Sprintf(", nodePort: %d", 30080+i)
			if r.IntN(2) == 0 {
				policy += ", externalTrafficPolicy: Local"
			}
		}
		r.add("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {clusterIP: 10.96.9.%d, type: %s, selector: {%s: x}, ports: [{port: 80%s}]%s}\n", name, i+1, kind, selector, nodePort, policy)
		r.services = append(r.services, name)
	}
	return r.text.String()
}

// access makes one: from a pod, a node or the outside; to a Service by address or
// name, a NodePort, a pod, an address that nobody has.
func (r *random) access(st *lab.Status) explain.Access {
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	a := explain.Access{Protocol: cluster.TCP}
	switch r.IntN(5) {
	case 0:
		a.From = fmt.Sprintf("node/n%d", 1+r.IntN(r.nodes))
	case 1:
		a.From = "outside"
	default:
		a.From = "default/" + pick(r.pods)
	}
	node := st.Nodes[r.IntN(len(st.Nodes))]
	i := r.IntN(len(r.services))
	switch n := r.IntN(10); {
	case n < 2:
		a.To = fmt.Sprintf("%s:%d", node.Addresses[0], 30080+i)
	case n < 4:
		if p := st.Pods[r.IntN(len(st.Pods))]; len(p.IPs) > 0 {
			a.To = p.IPs[0] + ":80"
			break
		}
		fallthrough
	case n == 4:
		a.To = strings.Replace(node.PodCIDRs[0], ".0/24", ".200:80", 1)
	case n == 5 && strings.HasPrefix(a.From, "default/"):
		a.To = services(r, i) + ":80"
	case n == 6:
		a.To = fmt.Sprintf("10.96.9.%d:81", i+1) // a cluster IP, another port
	default:
		a.To = fmt.Sprintf("10.96.9.%d:80", i+1)
	}
	if a.From == "outside" && strings.HasPrefix(a.To, "10.96.") {
		a.From = "default/" + pick(r.pods) // the lab's outside has no route to cluster IPs
	}
	return a
}

func services(r *random, i int) string {
	if r.IntN(2) == 0 {
		return r.services[i]
	}
	return r.services[i] + ".default.svc.cluster.local"
}

// What Explain predicts is what real packets meet: delivered to which endpoints in
// which proportion, refused, dropped or unreachable, and with which source.
func TestExplain_predicts(t *testing.T) {
	each := (*accesses + *clusters - 1) / *clusters
	for seed := range uint64(*clusters) {
		t.Run(fmt.Sprint("cluster ", seed), func(t *testing.T) {
			r := &random{Rand: rand.New(rand.NewPCG(seed, 7))}
			manifests := r.cluster()
			overlay := []string{"auto", "vxlan"}[seed%2]
			fast := []string{"off", "auto"}[seed/2%2]
			w := up(t, lab.Options{Overlay: overlay, Families: "ipv4", FastPath: fast}, manifests)
			w.settled()
			c := w.read()
			for range each {
				a := r.access(w.status())
				answer, err := c.Explain(t.Context(), a)
				if err != nil {
					t.Errorf("%+v: %v", a, err)
					continue
				}
				w.meets(answer)
			}
			if found := w.examine(); len(found) > 0 {
				t.Errorf("a healthy cluster: doctor finds %+v", found)
			}
		})
	}
}

// meets sends real connections and compares.
func (w *world) meets(a *explain.Answer) {
	w.Helper()
	n := 3
	if len(a.Paths) > 1 {
		n = 120
	}
	from := map[string]string{"node": "node/" + a.From.Name, "outside": "outside", "pod": a.From.Name}[a.From.Kind]
	to := a.To
	if a.Name == nil {
		to = a.Target.String()
	}
	timeout := "3s"
	if a.Verdict != explain.Delivered {
		timeout = "400ms"
	}
	out, _ := w.Client.Output(w.Context(), from, program(w.TB), "lab", "client", "-n", fmt.Sprint(n), "--timeout", timeout, "http://"+to)
	var got lab.TrafficResult
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		w.Errorf("%s to %s: %v: %s", from, to, err, out)
		return
	}
	if bad := differs(a, got, n); bad != "" {
		var text strings.Builder
		_ = a.Text(&text)
		w.Errorf("%s to %s: %s\nserved %v, failed %d, clients %v, errors %v\n%s", from, to, bad, got.ServedBy, got.Failed, got.Clients, got.Errors, text.String())
	}
}

func differs(a *explain.Answer, got lab.TrafficResult, n int) string {
	errs := strings.Join(got.Errors, "; ")
	switch a.Verdict {
	case explain.Delivered:
		return spreadDiffers(a, got, n)
	case explain.Refused:
		if got.Failed != n || !strings.Contains(errs, "refused") {
			return "want every connection refused"
		}
	case explain.Dropped:
		if got.Failed != n || !strings.Contains(errs, "timeout") && !strings.Contains(errs, "deadline") {
			return "want silence"
		}
	case explain.Unreachable:
		// The kernel limits the rate of ICMP errors, so some clients hear nothing.
		if got.Failed != n || strings.Contains(errs, "refused") {
			return "want no route to host"
		}
	case explain.Unanswered, explain.Leaves, explain.NoName:
		if got.Failed != n {
			return "want no answer"
		}
	}
	return ""
}

// spreadDiffers compares who answered and how often, and the sources they saw. A
// node that is reached itself has nothing that listens on port 80.
func spreadDiffers(a *explain.Answer, got lab.TrafficResult, n int) string {
	want, sources := map[string]float64{}, map[netip.Addr]bool{}
	for _, p := range a.Paths {
		if p.End.Kind != "pod" || strings.HasPrefix(p.End.Name, "kube-system/") {
			if got.Failed != n || !strings.Contains(strings.Join(got.Errors, ";"), "refused") {
				return "want a refusal by the node or pod itself, where nothing listens"
			}
			return ""
		}
		want[p.End.Pod.Name] += p.Probability
		sources[p.Source] = true
	}
	if got.Failed > 0 {
		return "want every connection answered"
	}
	for pod, share := range want {
		expected := share * float64(n)
		if spread := 5 * math.Sqrt(expected*(1-share)); math.Abs(float64(got.ServedBy[pod])-expected) > spread+0.5 {
			return fmt.Sprintf("%s answered %d of %d, want %.1f", pod, got.ServedBy[pod], n, expected)
		}
	}
	for _, client := range got.Clients {
		if ip, err := netip.ParseAddr(client); err != nil || !sources[ip] {
			return fmt.Sprintf("a pod saw the source %s, want one of %v", client, slices.Collect(mapKeys(sources)))
		}
	}
	return ""
}

func mapKeys(m map[netip.Addr]bool) func(func(netip.Addr) bool) {
	return func(yield func(netip.Addr) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}
