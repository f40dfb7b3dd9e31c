package real

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/test/e2e/internal/machines"
)

// testNotReady: without a network the nodes say so, and nothing of ours is there.
func testNotReady(t *testing.T) {
	eventually(t, "nodes say why they are not Ready", func() error {
		out, err := try("get", "nodes", "-o", "jsonpath={range .items[*]}{.status.conditions[?(@.type=='Ready')].message}\n{end}")
		if strings.Count(out, "cni plugin not initialized") != len(cluster.Nodes) {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	before = nil
	for _, n := range cluster.Nodes {
		before = append(before, traces(t, n))
	}
}

// before is what the nodes had before Podlane was installed.
var before []string

// testInstalls installs it as the manual says, after somebody has done so with an image
// that no node has: nothing of that may be in the way.
func testInstalls(t *testing.T) {
	text, err := os.ReadFile(cluster.Path(machines.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	wrong := cluster.Path("wrong-" + machines.Manifest)
	if err := os.WriteFile(wrong, bytes.ReplaceAll(text, []byte(machines.PodlaneImage), []byte("podlane.test/podlane:none")), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "apply", "-f", wrong)
	eventually(t, "pods with the wrong image", func() error {
		out, err := try("get", "pods", "-A", "-l", "app.kubernetes.io/name=podlane", "-o", "jsonpath={.items[*].spec.containers[*].image}")
		if strings.Count(out, "podlane:none") < len(cluster.Nodes) {
			return fmt.Errorf("%q: %w", out, err)
		}
		return nil
	})
	if err := cluster.Install(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// testRights: the agent runs with the rights of the manifest and no others.
func testRights(t *testing.T) {
	for _, n := range cluster.Nodes {
		out, err := n.Run(t.Context(), "sh", "-c", `pidof podlane | tr " " "\n" | while read p; do
			tr "\0" " " </proc/$p/cmdline; grep -E "^(CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/$p/status | tr -s "\t\n" "  "; echo; done`)
		if err != nil {
			t.Fatal(err)
		}
		agents, servers := 0, 0
		for line := range strings.SplitSeq(strings.TrimSpace(out), "\n") {
			want := ""
			switch {
			case strings.Contains(line, "podlane agent --node="+n.Name+" "):
				agents++
				want = "CapEff: 0000000000001000 CapBnd: 0000000000001000 NoNewPrivs: 1 Seccomp: 2" // bit 12: NET_ADMIN
				if fastPath {
					want = "CapEff: 000000c000001000 CapBnd: 000000c000001000 NoNewPrivs: 1 Seccomp: 2" // bits 38 and 39: PERFMON, BPF
				}
			case strings.Contains(line, "podlane dns "):
				servers++
				want = "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"
			}
			if want != "" && !strings.Contains(line, want) {
				t.Errorf("node %s: %s\nwant %s", n.Name, line, want)
			}
		}
		// All nodes share one PID namespace.
		if agents != 1 || servers != len(cluster.Nodes) {
			t.Errorf("node %s: %d agents and %d DNS servers in\n%s", n.Name, agents, servers, out)
		}
	}
}

// testStatus: the agent says where its API server is, and that all is well.
func testStatus(t *testing.T) {
	out := kubectl(t, "-n", "podlane", "exec", "daemonset/podlane-agent", "--", "/podlane", "status")
	path, sockets := "fast path off: ", "translation at the socket off: "
	if fastPath {
		path, sockets = "fast path on (", "translation at the socket on"
	}
	for _, want := range []string{"all is applied", "https://192.168.77.1:6443", "/etc/kubernetes/kubelet.conf", path, sockets} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

// testSeen: what an operator sees without a shell on a node, and what pods may see.
func testSeen(t *testing.T) {
	eventually(t, "the condition of each node", func() error {
		out, err := try("get", "nodes", "-o", "jsonpath={range .items[*]}{.status.conditions[?(@.type=='NetworkUnavailable')].status} {.status.conditions[?(@.type=='NetworkUnavailable')].reason}\n{end}")
		if strings.Count(out, "False PodlaneReady") != len(cluster.Nodes) {
			return fmt.Errorf("%q %w", out, err)
		}
		return nil
	})
	eventually(t, "a way to the other node that a probe has proven", func() error {
		out, err := try("-n", "podlane", "exec", "daemonset/podlane-agent", "--", "/podlane", "status")
		if !strings.Contains(out, "direct  arrives") {
			return fmt.Errorf("%s %w", out, err)
		}
		return nil
	})
	apply(t, workload("looker", 1))
	rollout(t, "deployment/looker")
	pod := pods(t, "app=looker", ".metadata.name")[0]
	for _, n := range cluster.Nodes {
		for path, want := range map[string]string{"/healthz": "ok", "/metrics": "podlane_ready 1"} {
			if out := mustIn(t, pod, "get", "http://"+n.IP4+":9471"+path); !strings.Contains(out, want) {
				t.Errorf("%s: %q, want %q", path, out, want)
			}
		}
		if out, err := in(pod, "get", "http://"+n.IP4+":9471/readyz"); err == nil && !strings.Contains(out, "for the node itself") {
			t.Errorf("/readyz: %q", out)
		}
	}
	for _, n := range cluster.Nodes {
		text, err := os.ReadFile(n.File("/var/lib/podlane/api-servers.v1.json"))
		if err != nil || !strings.Contains(string(text), "192.168.77.1:6443") {
			t.Errorf("node %s: other API servers: %s %v", n.Name, text, err)
		}
	}
}

// testPlugin: as kubectl's plugin, a node's bundle comes into a file of the user's.
func testPlugin(t *testing.T) {
	plugin, file := cluster.Path("kubectl-podlane"), filepath.Join(t.TempDir(), "n1.tar.gz")
	if err := os.Symlink("podlane", plugin); err != nil {
		t.Fatal(err)
	}
	context := kubectl(t, "config", "current-context")
	run := func(args ...string) (string, error) {
		env := []string{"PATH=" + cluster.Bin + ":" + os.Getenv("PATH"), "KUBECONFIG=" + cluster.Kubeconfig(), plugin}
		return cluster.Outside("env", append(env, args...)...)
	}
	if out, err := run("debug", "bundle", "--context", context, "--node", cluster.Nodes[0].Name, "-o", file); err != nil {
		t.Fatal(out, err)
	}
	if out, err := cluster.Outside("tar", "-xzOf", file, "podlane/status.json"); err != nil || !strings.Contains(out, cluster.Nodes[0].Name) {
		t.Error(out, err)
	}
	if out, err := run("status", "--context", "none"); err == nil {
		t.Errorf("with a context that is not there: %s", out)
	}
}

// testPolicies: a NetworkPolicy is not enforced, and that is said.
func testPolicies(t *testing.T) {
	apply(t, `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}, policyTypes: [Ingress]}
`)
	eventually(t, "an Event on the policy", func() error {
		out, err := try("get", "events", "--field-selector", "involvedObject.kind=NetworkPolicy,reason=NotEnforced", "-o", "name")
		if strings.Count(out, "event/closed.") != 1 {
			return fmt.Errorf("%q: %w", out, err)
		}
		return nil
	})
	if out := kubectl(t, "-n", "podlane", "exec", "daemonset/podlane-agent", "--", "/podlane", "status"); !strings.Contains(out, "NetworkPolicy default/closed: is not enforced") {
		t.Error(out)
	}
	if out, err := cluster.Nodes[0].Run(t.Context(), "curl", "-sS", "--noproxy", "*", "http://127.0.0.1:10249/metrics"); !strings.Contains(out, "podlane_networkpolicies_not_enforced 1") {
		t.Errorf("the metric is missing: %v", err)
	}
}

// testUninstalls: afterwards a node has what it had before.
func testUninstalls(t *testing.T) {
	kubectl(t, "delete", "-f", cluster.Path(machines.Manifest), "--ignore-not-found", "--cascade=foreground", "--timeout=90s")
	eventually(t, "the DNS Service that was made is gone", func() error {
		if out, err := try("-n", "kube-system", "get", "service", "kube-dns", "--ignore-not-found"); out != "" || err != nil {
			return fmt.Errorf("%s: %w", out, err)
		}
		return nil
	})
	kubectl(t, "apply", "-f", cluster.Path(machines.UninstallManifest))
	kubectl(t, "-n", "podlane-uninstall", "rollout", "status", "daemonset/podlane-cleanup", "--timeout=90s")
	kubectl(t, "delete", "-f", cluster.Path(machines.UninstallManifest), "--timeout=90s")
	if left := kubectl(t, "get", "pods", "-A", "-o", "name"); strings.Contains(left, "podlane-") {
		t.Errorf("pods that cannot end any more: %s", left)
	}
	forgetCondition(t)
	for i, n := range cluster.Nodes {
		if now := traces(t, n); now != before[i] {
			t.Errorf("node %s had\n%s\nand has\n%s", n.Name, before[i], now)
		}
	}
}

// forgetCondition removes the nodes' condition as the manual says.
func forgetCondition(t *testing.T) {
	t.Helper()
	for _, n := range cluster.Nodes {
		kubectl(t, "patch", "node/"+n.Name, "--subresource=status", "-p", `{"status":{"conditions":[{"type":"NetworkUnavailable","$patch":"delete"}]}}`)
	}
	if out := kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].status.conditions[*].type}"); strings.Contains(out, "NetworkUnavailable") || !strings.Contains(out, "Ready") {
		t.Errorf("conditions that are left: %s", out)
	}
}

// traces gives all of a node that Podlane could change.
func traces(t *testing.T, n *machines.Node) string {
	t.Helper()
	out, err := n.Run(t.Context(), "sh", "-c", `
		echo "links:"; ip -o link | sed "s/@.*//; s/^[0-9]*: //" | sort
		echo "routes:"; ip route; ip -6 route | grep -v fe80
		echo "tables:"; nft list tables | grep podlane
		echo "sysctls:"; for s in net/ipv4/ip_forward net/ipv6/conf/all/forwarding net/ipv6/conf/eth0/accept_ra; do echo $s $(cat /proc/sys/$s); done
		echo "tc:"; tc qdisc show dev eth0 2>/dev/null | grep clsact
		true`)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString(out)
	for _, dir := range []string{"/opt/cni/bin", "/etc/cni/net.d", "/run/podlane", "/var/lib/podlane", "/sys/fs/bpf/podlane"} {
		entries, _ := os.ReadDir(n.File(dir))
		for _, e := range entries {
			fmt.Fprintln(&b, filepath.Join(dir, e.Name()))
		}
	}
	for _, dir := range []string{"/run/podlane", "/var/lib/podlane"} {
		if _, err := os.Stat(n.File(dir)); err == nil {
			fmt.Fprintln(&b, dir)
		}
	}
	return b.String()
}
