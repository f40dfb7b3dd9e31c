package real

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// keepFastPath leaves the fast path on for the tests that follow.
const keepFastPath = "PODLANE_E2E_FAST_PATH"

// testFastPath: with the rights that the chart's fastPath gives, and no others, pods'
// packets take it; when the rights are taken back, nothing of it stays.
func testFastPath(t *testing.T) {
	for _, n := range cluster.Nodes {
		if out, err := n.Run(t.Context(), "mount", "-t", "bpf", "bpf", "/sys/fs/bpf"); err != nil {
			t.Skipf("node %s: no BPF file system: %v: %s", n.Name, err, out)
		}
	}
	apply(t, workload("web", 2))
	rollout(t, "deployment/web")
	if os.Getenv(keepFastPath) == "" {
		t.Cleanup(func() { mayLoad(t, `["NET_ADMIN"]`) }) // also where it fails: the next tests are of the normal path
	}
	mayLoad(t, `["NET_ADMIN","BPF","PERFMON"]`)
	names, ips := pods(t, "app=web", ".metadata.name"), pods(t, "app=web", ".status.podIPs[*].ip")
	eventually(t, "packets on the fast path", func() error {
		for i, ip := range ips {
			if got, err := in(names[1-i/2], "get", "http://"+hostPort(ip, 8080)+"/hostname"); err != nil || got != names[i/2] {
				return fmt.Errorf("%s: %q %w", ip, got, err)
			}
		}
		for _, status := range statuses(t) {
			if !strings.Contains(status, "fast path on (") || !strings.Contains(status, "shortcut_in ") {
				return fmt.Errorf("status: %s", status)
			}
		}
		return nil
	})
	if os.Getenv(keepFastPath) != "" {
		return
	}
	mayLoad(t, `["NET_ADMIN"]`)
	eventually(t, "nothing of the fast path", func() error {
		for _, status := range statuses(t) {
			if !strings.Contains(status, "fast path off: ") {
				return fmt.Errorf("status: %s", status)
			}
		}
		for _, n := range cluster.Nodes {
			out, err := n.Run(t.Context(), "find", "/sys/fs/bpf", "-path", "*podlane*", "-type", "f")
			if err != nil || out != "" {
				return fmt.Errorf("node %s: %s %w", n.Name, out, err)
			}
		}
		return nil
	})
	for i, ip := range ips {
		if got := mustIn(t, names[1-i/2], "get", "http://"+hostPort(ip, 8080)+"/hostname"); got != names[i/2] {
			t.Errorf("%s: %q, want %s", ip, got, names[i/2])
		}
	}
}

// mayLoad gives the agents these capabilities. It works in a clean-up too, where the
// test's context has ended.
func mayLoad(t *testing.T, capabilities string) {
	t.Helper()
	if _, err := try("-n", "podlane", "patch", "daemonset/podlane-agent", "--type=json", "-p",
		`[{"op":"replace","path":"/spec/template/spec/containers/0/securityContext/capabilities/add","value":`+capabilities+`}]`); err != nil {
		t.Fatal(err)
	}
	if _, err := try("-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=80s"); err != nil {
		t.Fatal(err)
	}
}

// statuses are what the agents say of themselves.
func statuses(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pod := range strings.Fields(kubectl(t, "-n", "podlane", "get", "pods", "-l", "app.kubernetes.io/component=agent", "-o", "name")) {
		all = append(all, kubectl(t, "-n", "podlane", "exec", pod, "--", "/podlane", "status"))
	}
	return all
}
