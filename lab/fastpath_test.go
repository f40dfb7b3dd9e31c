package lab_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

const fastPathObjects = `
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {nodeName: n1, containers: [{name: c, image: busybox, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: careful, annotations: {podlane.dev/fast-path: "off"}}
spec: {nodeName: n1, containers: [{name: c, image: busybox, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: n2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-here, labels: {app: web}}
spec: {nodeName: n1, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
`

// fastLab is a lab of two nodes with the fast path on.
type fastLab struct {
	t    *testing.T
	user user
	name string
	// leaves looks, after the lab's end, for what it left; nil is nothing.
	leaves func()
}

func (l *fastLab) run(args ...string) string {
	l.t.Helper()
	return run(l.t, l.user.command(l.t, append([]string{"lab", args[0], "--name", l.name}, args[1:]...)...))
}

func (l *fastLab) status(node string) string {
	l.t.Helper()
	return l.run("exec", "node/"+node, "--", "podlane", "status", "--run-dir", l.runDir(node))
}

func (l *fastLab) runDir(node string) string {
	return filepath.Join(l.user.dir(l.name), "nodes", node, "run")
}

// on waits until a node's agent runs and has its fast path on.
func (l *fastLab) on(node string) {
	l.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		out, err := l.user.command(l.t, "lab", "exec", "--name", l.name, "node/"+node, "--", "podlane", "status", "--run-dir", l.runDir(node)).CombinedOutput()
		if err == nil && strings.Contains(string(out), "fast path on") {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("%s: %v: %s", node, err, out)
		}
	}
}

// counter reads one of a node's counters.
func (l *fastLab) counter(node, reason string) int {
	l.t.Helper()
	match := regexp.MustCompile(`\b` + reason + ` (\d+)`).FindStringSubmatch(l.status(node))
	if match == nil {
		return 0
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

func (l *fastLab) requests(from string, n int, url string) {
	l.t.Helper()
	if out := l.run("exec", from, "--", "podlane", "lab", "client", "-n", strconv.Itoa(n), url); !strings.Contains(out, `"failed": 0`) {
		l.t.Errorf("%s to %s: %s", from, url, out)
	}
}

func (l *fastLab) address(pod string) string {
	l.t.Helper()
	for line := range strings.Lines(l.run("status")) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "default/"+pod {
			return f[3]
		}
	}
	l.t.Fatalf("no address of pod %s", pod)
	return ""
}

// The fast path in a whole cluster: from pod to pod, of Services, of a pod that
// opted out, with agents that are killed, and with one node that has none.
func TestFastPath(t *testing.T) {
	l := upFast(t, fastPathObjects)
	l.ways()
	l.ipsec()
	l.changes()
}

// upFast brings up such a lab, which the test takes down.
func upFast(t *testing.T, objects string, flags ...string) *fastLab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: without it there is no BPF")
	}
	u := users()[0]
	needLabs(t, u)
	before := machine()
	file := filepath.Join(t.TempDir(), "objects.yaml")
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &fastLab{t: t, user: u, name: newName()}
	args := append([]string{"lab", "up", "--name", l.name, "--fast-path", "on", "-f", file}, flags...)
	if out, err := u.command(t, args...).CombinedOutput(); err != nil {
		t.Skipf("no fast path here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		l.run("down")
		sameMachine(t, before)
		if l.leaves != nil {
			l.leaves()
		}
	})
	return l
}

func (l *fastLab) ways() {
	t, web := l.t, l.address("web")
	if st := l.status("n1"); !strings.Contains(st, "fast path on") || !strings.Contains(st, "on the normal path: pod default/careful: opt-out") {
		t.Errorf("status: %s", st)
	}
	for _, step := range []struct {
		from, url, node, grows string
	}{
		{"client", "http://" + web, "n1", "shortcut_direct"},
		{"client", "http://" + web, "n2", "shortcut_in"},
		{"client", "http://" + l.address("web-here"), "n1", "shortcut_local"},
		{"client", "http://web", "n1", "pass_nat"},
		{"careful", "http://" + l.address("web-here"), "n1", "pass_pod"},
		{"node/n1", "http://" + web, "n2", "pass_source"},
	} {
		was := l.counter(step.node, step.grows)
		l.requests(step.from, 50, step.url)
		if now := l.counter(step.node, step.grows); now <= was {
			t.Errorf("%s to %s: %s of %s was %d and is %d", step.from, step.url, step.grows, step.node, was, now)
		}
	}
	if out := l.run("exec", "node/n1", "--", "curl", "-s", "127.0.0.1:10249/metrics"); !strings.Contains(out, `podlane_fastpath_packets_total{reason="shortcut_direct"}`) {
		t.Errorf("metrics: %.500s", out)
	}
}

// ipsec makes and deletes a policy for another node's pods: their network leaves the
// fast path and comes back at once, not only when all is looked at again, every 30 s.
func (l *fastLab) ipsec() {
	began := time.Now()
	for range 3 {
		for _, step := range []struct {
			change string
			seen   bool
		}{{"add", true}, {"delete", false}} {
			words := []string{"exec", "node/n1", "--", "ip", "xfrm", "policy", step.change, "src", l.address("client") + "/32", "dst", l.address("web") + "/32", "dir", "out"}
			if step.seen {
				words = append(words, "tmpl", "src", "192.0.2.1", "dst", "192.0.2.2", "proto", "esp", "mode", "tunnel")
			}
			l.run(words...)
			for strings.Contains(l.status("n1"), ": IPsec") != step.seen {
				if time.Since(began) > 25*time.Second {
					l.t.Errorf("policy %s: %s", step.change, l.status("n1"))
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
}

// changes kills and starts agents, and takes the fast path of one node away and
// back, while requests go on.
func (l *fastLab) changes() {
	t := l.t
	client := l.user.command(t, "lab", "exec", "--name", l.name, "client", "--", "sh", "-c", fmt.Sprintf(
		`podlane lab client -n 8000 --parallel 4 http://web & podlane lab client -n 8000 --parallel 4 http://%s; wait`, l.address("web")))
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() { out, err := client.CombinedOutput(); done <- result{out, err} }()
	dir := l.user.dir(l.name)
	was := l.counter("n2", "shortcut_in")
	for range 2 {
		l.run("agents", "kill")
		time.Sleep(200 * time.Millisecond)
		l.normal(dir, "n2")
		l.run("agents", "start")
		l.on("n2")
	}
	r := <-done
	if r.err != nil || strings.Count(string(r.out), `"failed": 0`) != 2 {
		t.Errorf("requests: %v: %s", r.err, r.out)
	}
	l.requests("client", 50, "http://"+l.address("web"))
	if now := l.counter("n2", "shortcut_in"); now == 0 {
		t.Errorf("shortcut_in of n2 was %d and is %d", was, now)
	}
}

// normal runs an agent without the fast path on a node for a moment.
func (l *fastLab) normal(dir, node string) {
	l.t.Helper()
	cmd := l.user.command(l.t, "lab", "exec", "--name", l.name, "node/"+node, "--", "timeout", "-s", "INT", "3", "podlane", "agent",
		"--node", node, "--manifests", filepath.Join(dir, "cluster"), "--run-dir", l.runDir(node),
		"--state-dir", filepath.Join(dir, "nodes", node, "state"), "--fast-path", "off", "--bpf-dir", filepath.Join(dir, "bpf", node))
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "synced") {
		l.t.Errorf("the agent without the fast path: %s", out)
	}
}
