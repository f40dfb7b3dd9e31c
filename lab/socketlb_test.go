package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
)

// Services translated at the pods' sockets in a whole cluster: what a client meets is
// the same, and no packet of it is translated; pods that keep to the rules; counters;
// no agent; on and off under traffic.
func TestSocketLB(t *testing.T) {
	l := upFast(t, fastPathObjects, "--socket-lb", "on")
	cgroup := regexp.MustCompile(`frontends, (\S+)`).FindStringSubmatch(l.status("n1"))
	if cgroup == nil {
		t.Fatal(l.status("n1"))
	}
	l.leaves = func() {
		if _, err := os.Stat(filepath.Dir(cgroup[1])); !os.IsNotExist(err) {
			t.Errorf("%s: %v", cgroup[1], err)
		}
	}
	l.translated()
	l.withoutAgents()
	l.changesUnderLoad()
}

// newConnections reads the counter of Service web at a node, from the kernel.
func (l *fastLab) newConnections(node string) int {
	l.t.Helper()
	var lines []struct {
		New int `json:"new_connections"`
	}
	if err := json.Unmarshal([]byte(l.run("exec", "node/"+node, "--", "podlane", "counters", "--json", "default/web")), &lines); err != nil {
		l.t.Fatal(err)
	}
	n := 0
	for _, line := range lines {
		n += line.New
	}
	return n
}

func (l *fastLab) translated() {
	t := l.t
	if st := l.status("n1"); !strings.Contains(st, "translation at the socket on") || !strings.Contains(st, "by the rules: pod default/careful: opt-out") {
		t.Errorf("status: %s", st)
	}
	for _, step := range []struct {
		from        string
		translated  int // of 100
		nat, counts bool
	}{{"client", 100, false, true}, {"web-here", 100, false, true}, {"careful", 0, true, true}, {"node/n1", 0, false, true}} {
		nat, sockets, counted := l.counter("n1", "pass_nat"), l.counter("n1", "translated"), l.newConnections("n1")
		l.requests(step.from, 100, "http://"+l.clusterIP("web"))
		// The status asks nobody through a Service, but for names.
		if now := l.counter("n1", "pass_nat"); step.from == "client" && now != nat {
			t.Errorf("%s: %d packets of translated flows", step.from, now-nat)
		}
		if now := l.counter("n1", "translated"); now-sockets != step.translated {
			t.Errorf("%s: %d connections translated at the socket, want %d", step.from, now-sockets, step.translated)
		}
		if now := l.newConnections("n1"); now-counted != 100 {
			t.Errorf("%s: %d connections counted, want 100", step.from, now-counted)
		}
	}
	metrics := l.run("exec", "node/n1", "--", "curl", "-s", "127.0.0.1:10249/metrics")
	match := regexp.MustCompile(`podlane_service_new_flows_total\{.*service="web"\} (\d+)`).FindStringSubmatch(metrics)
	if match == nil {
		t.Fatalf("metrics: %.500s", metrics)
	}
	if n, _ := strconv.Atoi(match[1]); n != l.newConnections("n1") {
		t.Errorf("metrics have %d connections, the kernel %d", n, l.newConnections("n1"))
	}
	if out := l.run("explain", "client", "web:80", "--verify"); !strings.Contains(out, "no packet is translated") || !strings.Contains(out, "all is as explained") {
		t.Errorf("explain: %s", out)
	}
}

func (l *fastLab) clusterIP(service string) string {
	l.t.Helper()
	var st lab.Status
	if err := json.Unmarshal([]byte(l.run("status", "--json")), &st); err != nil {
		l.t.Fatal(err)
	}
	for _, s := range st.Services {
		if s.Name == service {
			return s.ClusterIPs[0]
		}
	}
	l.t.Fatalf("no Service %s", service)
	return ""
}

// withoutAgents: an agent that is killed changes nothing.
func (l *fastLab) withoutAgents() {
	ip := l.clusterIP("web")
	traffic := l.load("client", "http://"+ip, 4)
	time.Sleep(time.Second)
	l.run("agents", "kill")
	before := l.newConnections("n1")
	l.requests("client", 500, "http://"+ip)
	if n := l.newConnections("n1") - before; n < 500 {
		l.t.Errorf("with no agent %d connections were counted", n)
	}
	l.whole(<-traffic, 2000)
	l.run("agents", "start")
	l.on("n1")
}

// load makes 1,000 requests a second for so long, with 20 connections that stay.
func (l *fastLab) load(from, url string, seconds int) chan lab.TrafficResult {
	cmd := l.user.command(l.t, "lab", "exec", "--name", l.name, from, "--", "podlane", "lab", "client", "-n", fmt.Sprint(1000*seconds),
		"--rate", "1000", "--long", "20", "--parallel", "16", url)
	done := make(chan lab.TrafficResult, 1)
	go func() {
		var r lab.TrafficResult
		out, _ := cmd.Output()
		if err := json.Unmarshal(out, &r); err != nil {
			r.Errors = append(r.Errors, fmt.Sprintf("%v: %s", err, out))
		}
		done <- r
	}()
	return done
}

// whole says that nothing was lost.
func (l *fastLab) whole(r lab.TrafficResult, atLeast int) {
	l.t.Helper()
	if r.Failed+r.LongLost > 0 || len(r.Errors) > 0 || r.Requests < atLeast || r.LongRequests < 20*5 {
		l.t.Errorf("%+v", r)
	}
	l.t.Logf("%d requests in %.1f s, %d over 20 long connections: none lost", r.Requests, r.Seconds, r.LongRequests)
}

// changesUnderLoad turns fast path and translation off and on at both nodes.
func (l *fastLab) changesUnderLoad() {
	t, dir := l.t, l.user.dir(l.name)
	before := l.newConnections("n1")
	traffic := []chan lab.TrafficResult{l.load("client", "http://"+l.clusterIP("web"), 15), l.load("client", "http://"+l.address("web"), 15)}
	for i, node := range []string{"n1", "n2", "n1"} {
		l.run("agents", "kill", node)
		l.normal(dir, node)
		if st := l.agentLess(node); i == 0 && strings.Contains(st, "connect4") {
			t.Errorf("off leaves pins: %s", st)
		}
		l.run("agents", "start", node)
		l.on(node)
	}
	for _, c := range traffic {
		l.whole(<-c, 10000)
	}
	if st := l.status("n1"); !strings.Contains(st, "translation at the socket on") {
		t.Errorf("status: %s", st)
	}
	if n := l.newConnections("n1"); n < before/2 && n < 1000 {
		t.Errorf("%d connections counted", n)
	}
}

// agentLess lists the pins of a node.
func (l *fastLab) agentLess(node string) string {
	l.t.Helper()
	return l.run("exec", "node/"+node, "--", "find", filepath.Join(l.user.dir(l.name), "bpf"), "-path", "*/"+node+"/*")
}

// Without root the translation is off, and says so; asked for, it is refused.
func TestSocketLB_rootless(t *testing.T) {
	for _, u := range users() {
		if u.name == "root" {
			continue
		}
		needLabs(t, u)
		out, err := u.command(t, "lab", "up", "--name", newName(), "--socket-lb", "on").CombinedOutput()
		if err == nil || !strings.Contains(string(out), "needs root") {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if os.Getuid() == 0 {
		t.Skip("no other user to try")
	}
}
