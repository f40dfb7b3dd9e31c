package real

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// podlane runs podlane on the machine of the control plane, which is outside of the
// nodes, as a user of a kubeconfig.
func podlane(t *testing.T, kubeconfig string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), cluster.Path("podlane"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// must is podlane that has to end with that status and print all of these.
func must(t *testing.T, kubeconfig string, status int, want []string, args ...string) string {
	t.Helper()
	got, out, errs := podlane(t, kubeconfig, args...)
	if got != status {
		t.Errorf("podlane %v: exit status %d, want %d\n%s%s", args, got, status, out, errs)
	}
	for _, w := range want {
		if !strings.Contains(out+errs, w) {
			t.Errorf("podlane %v: no %q in\n%s%s", args, w, out, errs)
		}
	}
	return out
}

// testExplain: from outside of the nodes, with a kubeconfig, an access is explained
// and its way proved on both nodes; what is in the way is named; and who has no
// right is told so in a line.
func testExplain(t *testing.T) {
	apply(t, workload("asker", 2))
	apply(t, workload("seen", 2))
	rollout(t, "deployment/asker")
	rollout(t, "deployment/seen")
	first, other := cluster.Nodes[0], cluster.Nodes[1]
	admin, asker := cluster.Kubeconfig(), onNode(t, "asker", first.Name, ".metadata.name")
	far, near := onNode(t, "seen", other.Name, ".metadata.name"), onNode(t, "seen", first.Name, ".metadata.name")
	mustIn(t, near, "get", "http://127.0.0.1:8080/drain") // the Service leads to the other node alone
	eventually(t, "one endpoint", func() error {
		out, err := try("get", "endpointslices", "-l", "kubernetes.io/service-name=seen", "-o", "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].nodeName}")
		for name := range strings.FieldsSeq(out) {
			if name == first.Name {
				return fmt.Errorf("%s %w", out, err)
			}
		}
		return err
	})
	t.Run("explain", func(t *testing.T) {
		must(t, admin, 0, []string{"default/" + far, "verdict: delivered", first.Name, other.Name}, "explain", asker, "seen:80")
	})
	t.Run("verify", func(t *testing.T) {
		var v struct {
			Counted int
			First   any
			Probe   struct{ Outcome string }
			Seen    map[string]struct {
				Seen  bool
				Flows []any
			}
		}
		out := must(t, admin, 0, nil, "explain", asker, "seen:80", "--verify", "-o", "json")
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			t.Fatal(err)
		}
		if v.First != nil || v.Probe.Outcome != "answered" || v.Counted < 1 {
			t.Errorf("%+v", v)
		}
		for _, n := range []string{first.Name, other.Name} {
			if s := v.Seen[n]; (s.Seen && len(s.Flows) > 0) == fastPath { // past nftrace and conntrack
				t.Errorf("node %s has seen the probe: %v, %+v", n, !fastPath, s)
			}
		}
		t.Logf("%+v", v)
	})
	t.Run("from a node, and from outside", func(t *testing.T) {
		must(t, admin, 0, []string{"all is as explained"}, "explain", "node/"+first.Name, "svc/default/seen:80", "--verify")
		port := kubectl(t, "get", "service", "seen", "-o", "jsonpath={.spec.ports[0].nodePort}")
		must(t, admin, 0, []string{"all is as explained", "counter rose by"}, "explain", "outside", hostPort(first.IP4, port), "--verify")
	})
	t.Run("what is in the way is named", func(t *testing.T) {
		obstacle(t, other, `nft add table inet fw; nft add chain inet fw f '{ type filter hook forward priority 10; }'; nft add rule inet fw f tcp dport 8080 drop`, "nft delete table inet fw")
		if fastPath { // the rule is past, until the pods keep to the normal path
			must(t, admin, 0, []string{"all is as explained", "its fast path takes packets past"}, "explain", asker, "seen:80", "--verify")
			must(t, admin, 0, []string{"PL-031", "inet fw"}, "doctor")
			keepToNormalPath(t, asker, far)
		}
		must(t, admin, 1, []string{"FIRST DIFFERENCE", "node " + other.Name, "table fw chain f rule handle 2"}, "explain", asker, "seen:80", "--verify")
	})
	t.Run("all", func(t *testing.T) {
		must(t, admin, 0, []string{"have what the cluster wants"}, "explain", "--all")
	})
	t.Run("conn", func(t *testing.T) { // with the fast path: of pods that keep to the normal path, by now; conntrack has no others
		mustIn(t, asker, "get", "http://seen/hostname")
		must(t, admin, 0, []string{"(default/" + asker + ") to Service default/seen", "went to default/" + far}, "explain", "conn", asker)
	})
	t.Run("errors", testExplainErrors)
}

// obstacle is a shell command on a node until the test's end.
func obstacle(t *testing.T, n *machines.Node, put, take string) {
	t.Helper()
	if _, err := n.Run(t.Context(), "sh", "-c", put); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := n.Run(context.Background(), "sh", "-c", take); err != nil {
			t.Error(err)
		}
	})
}

// reader is a user with the rights that docs/doctor.md names for explaining, and
// none to run anything.
const reader = `apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules:
- {apiGroups: [""], resources: [nodes, pods, services], verbs: [list]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
`

func testExplainErrors(t *testing.T) {
	apply(t, reader)
	users := 0
	as := func(token, server string) string {
		users++
		file := cluster.Path(fmt.Sprint("user", users, ".kubeconfig"))
		text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "%s", insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: "%s"}}]}`, server, token)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	server := kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
	for _, c := range []struct {
		name, kubeconfig, want string
		args                   []string
	}{
		{"no such pod", cluster.Kubeconfig(), "no pod default/nobody", []string{"nobody", "seen:80"}},
		{"no such Service", cluster.Kubeconfig(), "no Service default/nobody", []string{"node/" + cluster.Nodes[0].Name, "svc/default/nobody:80"}},
		{"no rights to run", as(kubectl(t, "create", "token", "reader"), server), "has no right to", []string{"node/" + cluster.Nodes[0].Name, "svc/default/seen:80"}},
		{"no rights at all", as(kubectl(t, "create", "token", "default"), server), "has no right to", []string{"node/" + cluster.Nodes[0].Name, "svc/default/seen:80"}},
		{"a token that is none", as("nothing", server), "does not know this user", []string{"node/" + cluster.Nodes[0].Name, "svc/default/seen:80"}},
		{"no server", as("nothing", "https://127.0.0.1:1"), "connection refused", []string{"node/" + cluster.Nodes[0].Name, "svc/default/seen:80"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, out, errs := podlane(t, c.kubeconfig, append([]string{"explain"}, c.args...)...)
			if status != 2 || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, c.want) {
				t.Errorf("exit status %d, %q, %q: want 2 and a line with %q", status, out, errs, c.want)
			}
		})
	}
}

// testDoctor: a healthy cluster is well; where packets between nodes are lost, all
// or the long ones alone, each pair is named, both ways; what the agents find
// themselves is in their metrics and in Events on the Node.
func testDoctor(t *testing.T) {
	admin := cluster.Kubeconfig()
	eventually(t, "all is well", func() error {
		status, out, errs := podlane(t, admin, "doctor")
		if status != 0 || !strings.Contains(out, "all is well") {
			return fmt.Errorf("exit status %d: %s%s", status, out, errs)
		}
		return nil
	})
	first, other := cluster.Nodes[0], cluster.Nodes[1]
	for _, c := range []struct{ name, rule, id string }{
		{"packets between nodes are lost", "udp dport 8473 drop", "PL-060"},
		{"long packets between nodes are lost", "udp dport 8473 meta length gt 1000 drop", "PL-061"},
	} {
		t.Run(c.name, func(t *testing.T) {
			obstacle(t, other, "nft add table inet fw; nft add chain inet fw f '{ type filter hook input priority 10; }'; nft add rule inet fw f "+c.rule, "nft delete table inet fw")
			out := must(t, admin, 1, []string{c.id}, "doctor", "-o", "json")
			var found []struct{ ID, Node, Evidence string }
			if err := json.Unmarshal([]byte(out), &found); err != nil {
				t.Fatal(err)
			}
			pairs := map[string]bool{}
			for _, f := range found {
				if f.ID == c.id && strings.Contains(f.Evidence, "from n1 to "+other.IP4+" of n2") || strings.Contains(f.Evidence, "from n2 to "+first.IP4+" of n1") {
					pairs[f.Node] = true
				}
			}
			if !pairs[first.Name] || !pairs[other.Name] {
				t.Errorf("both nodes' ways are lost: %+v", found)
			}
		})
	}
	t.Run("the agents' own looks", func(t *testing.T) {
		obstacle(t, other, "ip link add flannel.9 type veth peer name fl9; ip route add 10.244.0.128/30 dev eth0", "ip route del 10.244.0.128/30 dev eth0; ip link del flannel.9")
		kubectl(t, "-n", "podlane", "rollout", "restart", "daemonset/podlane-agent") // they look soon after the start
		kubectl(t, "-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=90s")
		eventually(t, "Events on the Node", func() error {
			out, err := try("get", "events", "--field-selector", "involvedObject.kind=Node,involvedObject.name="+other.Name, "-o", "jsonpath={range .items[*]}{.reason} {.message}{\"\\n\"}{end}")
			if !strings.Contains(out, "PL-012 ") || !strings.Contains(out, "PL-014 ") || !strings.Contains(out, "10.244.0.128/30") {
				return fmt.Errorf("%s %w", out, err)
			}
			return nil
		})
		if out, err := other.Run(t.Context(), "curl", "-sS", "--noproxy", "*", "http://127.0.0.1:10249/metrics"); !strings.Contains(out, `podlane_doctor_findings{id="PL-014",severity="fail"} 1`) {
			t.Errorf("the metric is missing: %v", err)
		}
	})
}
