package dns

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// dnsLab is a lab with a DNS server on each of two nodes, whose readiness is
// probed, behind one Service, and a client on the first node.
type dnsLab struct {
	t    *testing.T
	name string
}

func newDNSLab(t *testing.T) *dnsLab {
	t.Helper()
	for _, p := range []string{"dig", "dnsperf"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs ", p, ": ", err)
		}
	}
	if out, err := exec.Command("unshare", "-Urnm", "true").CombinedOutput(); err != nil && os.Getuid() != 0 {
		t.Skipf("no namespaces here: %v: %s", err, out)
	}
	l := &dnsLab{t, fmt.Sprint("dns-", os.Getpid(), "-", strings.ToLower(t.Name()[len("TestLab_"):]))}
	l.run("up", "--ip-family", "ipv4", "-f", "testdata/lab.yaml")
	t.Cleanup(func() { l.run("down") })
	return l
}

func (l *dnsLab) run(verb string, args ...string) string {
	l.t.Helper()
	cmd := exec.Command(programs.Podlane, append([]string{"lab", verb, "--name", l.name}, args...)...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("lab %s %v: %v\n%s", verb, args, err, errs.Bytes())
	}
	return string(out)
}

// server gives the process of a pod; 0: it does not run.
func (l *dnsLab) server(pod string) int {
	l.t.Helper()
	var st struct {
		Pods []struct {
			Name       string
			Containers []struct{ PID int }
		}
	}
	if err := json.Unmarshal([]byte(l.run("status", "--json")), &st); err != nil {
		l.t.Fatal(err)
	}
	for _, p := range st.Pods {
		if p.Name == pod {
			return p.Containers[0].PID
		}
	}
	return 0
}

// The DNS servers of the first node: the one that the test adds, whose readiness
// is probed through the API, and the lab's own, which the agent asks.
const (
	added = "dns-1"
	own   = "podlane-dns-n1"
)

// signal sends a signal to a pod's process. That it is gone is no error.
func (l *dnsLab) signal(pod, sig string) {
	l.t.Helper()
	if pid := l.server(pod); pid > 0 {
		l.run("exec", "node/n1", "--", "sh", "-c", fmt.Sprintf("kill -%s %d || true", sig, pid))
	}
}

// question is one of the client's.
type question struct {
	at time.Time
	ok bool
}

// asking asks from the client pod for some seconds, each time from a new port, and
// never waits for an answer before it asks again.
func (l *dnsLab) asking(service string, seconds, tries int) (done <-chan []question) {
	script := fmt.Sprintf(`end=$(( $(date +%%s) + %d )); while [ $(date +%%s) -lt $end ]; do (t=$(date +%%s%%N)
if dig @%s dns.test.svc.cluster.local +short +tries=%d +time=1 | grep -qx 10.96.53.53; then echo $t ok; else echo $t fail; fi)& sleep 0.05; done; wait`, seconds, service, tries)
	out := make(chan []question, 1)
	go func() {
		text, _ := exec.Command(programs.Podlane, "lab", "exec", "--name", l.name, "test/client", "--", "sh", "-c", script).Output()
		var all []question
		for line := range strings.Lines(string(text)) {
			var at int64
			var how string
			if n, _ := fmt.Sscan(line, &at, &how); n == 2 {
				all = append(all, question{time.Unix(0, at), how == "ok"})
			}
		}
		out <- all
	}()
	time.Sleep(time.Second)
	return out
}

// The Services: of the added servers, and of the lab's own.
const (
	addedService = "10.96.53.53"
	ownService   = "10.96.0.10"
)

// moved says when the last question was asked that was not answered.
func moved(t *testing.T, all []question, since time.Time, within time.Duration) {
	t.Helper()
	var last time.Duration
	failed, after := 0, 0
	for _, q := range all {
		if !q.ok {
			failed++
			last = max(last, q.at.Sub(since))
		}
		if q.at.Sub(since) > within {
			after++
		}
	}
	t.Logf("%d questions, %d not answered, the last of them asked %v after", len(all), failed, last.Round(time.Millisecond))
	if last > within {
		t.Errorf("after %v a question was not answered, want at most %v", last, within)
	}
	if after < 10 {
		t.Errorf("only %d questions were asked later than that", after)
	}
}

// TestLab_crash: a server that crashes: within 2 s all questions are answered
// again, by the other node's or by the one started anew.
func TestLab_crash(t *testing.T) {
	l := newDNSLab(t)
	answers := l.asking(addedService, 6, 1)
	start := time.Now()
	l.signal(added, "KILL")
	moved(t, <-answers, start, 2*time.Second)
}

// TestLab_hang: a server that hangs fails its readiness probe: within 4 s nobody
// asks it.
func TestLab_hang(t *testing.T) {
	l := newDNSLab(t)
	answers := l.asking(addedService, 8, 1)
	start := time.Now()
	l.signal(added, "STOP")
	moved(t, <-answers, start, 4*time.Second)
	l.signal(added, "CONT")
}

// TestLab_probe: a server of the cluster's DNS that hangs, though the API goes on
// calling it ready: the node's agent asks it, and within 1 s nobody else does. A
// client that tries twice loses nothing.
func TestLab_probe(t *testing.T) {
	l := newDNSLab(t)
	once, twice := l.asking(ownService, 8, 1), l.asking(ownService, 8, 2)
	start := time.Now()
	l.signal(own, "STOP")
	time.Sleep(4 * time.Second)
	if text := l.agentStatus("n1"); !strings.Contains(text, "NO ANSWER from 10.244.") {
		t.Errorf("the agent's status: %s", text)
	}
	l.signal(own, "CONT")
	moved(t, <-once, start, time.Second)
	moved(t, <-twice, start, 0)
	for end := time.Now().Add(10 * time.Second); strings.Contains(l.agentStatus("n1"), "NO ANSWER"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the server answers again, and the agent does not say so")
		}
	}
}

// agentStatus is what an agent says of itself.
func (l *dnsLab) agentStatus(node string) string {
	var st struct{ Dir string }
	if err := json.Unmarshal([]byte(l.run("status", "--json")), &st); err != nil {
		l.t.Fatal(err)
	}
	return l.run("exec", "node/"+node, "--", programs.Podlane, "status", "--run-dir", filepath.Join(st.Dir, "nodes", node, "run"))
}

// TestLab_drain: a server that is told to end, and comes back, under load: no
// question is lost that one more try within a second does not answer.
func TestLab_drain(t *testing.T) {
	l := newDNSLab(t)
	answers := l.asking(addedService, 6, 2)
	path := filepath.Join(t.TempDir(), "questions")
	if err := os.WriteFile(path, []byte("dns.test.svc.cluster.local A\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	load := make(chan string, 1)
	go func() {
		out, _ := exec.Command(programs.Podlane, "lab", "exec", "--name", l.name, "test/client", "--",
			"dnsperf", "-s", "10.96.53.53", "-d", path, "-l", "5", "-Q", "2000", "-c", "20", "-t", "1").CombinedOutput()
		load <- string(out)
	}()
	time.Sleep(500 * time.Millisecond)
	start := time.Now()
	l.signal(added, "TERM")
	moved(t, <-answers, start, 0)
	out := <-load
	m := regexp.MustCompile(`Queries completed:.*\n.*Queries lost:.*`).FindString(out)
	if m == "" {
		t.Fatalf("dnsperf: %s", out)
	}
	t.Logf("dnsperf, without retries: %s", m)
}
