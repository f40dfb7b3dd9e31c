package real

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// testFastPath: with the rights that the chart's fastPath gives, and no others, pods'
// packets take it; when the rights are taken back, nothing of it stays. In a run that
// has it on from the install it stays on, and Services are translated at the socket.
func testFastPath(t *testing.T) {
	if fastPath {
		testFastPathOn(t)
		return
	}
	for _, n := range cluster.Nodes {
		if out, err := n.Run(t.Context(), "mount", "-t", "bpf", "bpf", "/sys/fs/bpf"); err != nil {
			t.Skipf("node %s: no BPF file system: %v: %s", n.Name, err, out)
		}
	}
	apply(t, workload("web", 2))
	rollout(t, "deployment/web")
	t.Cleanup(func() { mayLoad(t, `["NET_ADMIN"]`) }) // also where it fails: the next tests are of the normal path
	mayLoad(t, `["NET_ADMIN","BPF","PERFMON"]`)
	names, ips := onFastPath(t)
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

// onFastPath waits until packets between the two pods of web take the fast path, and
// gives the pods' names and addresses.
func onFastPath(t *testing.T) (names, ips []string) {
	t.Helper()
	names, ips = pods(t, "app=web", ".metadata.name"), pods(t, "app=web", ".status.podIPs[*].ip")
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
	return names, ips
}

// testFastPathOn: connections to a Service's address are translated at the socket, each
// node's by its own agent, and packets between the pods take the fast path.
func testFastPathOn(t *testing.T) {
	apply(t, workload("web", 2))
	rollout(t, "deployment/web")
	names, _ := onFastPath(t)
	for _, ip := range strings.Fields(kubectl(t, "get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
		before := translated(t)
		for _, from := range names {
			for range 10 {
				if got := mustIn(t, from, "get", "http://"+hostPort(ip, 80)+"/hostname"); !slices.Contains(names, got) {
					t.Errorf("%s answered: %q", ip, got)
				}
			}
		}
		for node, n := range translated(t) {
			if n < before[node]+10 {
				t.Errorf("agent %d: %d connections to %s were translated at the socket, want 10", node, n-before[node], ip)
			}
		}
	}
}

var translatedCount = regexp.MustCompile(`connections: translated (\d+)`)

// translated gives how many connections each agent's programs have translated.
func translated(t *testing.T) (all []int) {
	t.Helper()
	for _, status := range statuses(t) {
		if !strings.Contains(status, "translation at the socket on: ") {
			t.Fatal(status)
		}
		n := 0
		if match := translatedCount.FindStringSubmatch(status); match != nil {
			n, _ = strconv.Atoi(match[1])
		}
		all = append(all, n)
	}
	return all
}

// keepToNormalPath gives pods the annotation, and waits until their agents have it.
func keepToNormalPath(t *testing.T, names ...string) {
	t.Helper()
	kubectl(t, append(append([]string{"annotate", "pods"}, names...), "podlane.dev/fast-path=off")...)
	eventually(t, "pods on the normal path", func() error {
		all := strings.Join(statuses(t), "\n")
		for _, p := range names {
			if !strings.Contains(all, "pod default/"+p+": opt-out") {
				return fmt.Errorf("pod %s is not on it: %s", p, all)
			}
		}
		return nil
	})
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
