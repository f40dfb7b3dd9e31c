package lab_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/podlane/podlane/lab"
)

var soak = flag.Duration("soak", 0, "run TestFastPath_soak for so long")

var soakOverlay = flag.String("soak-overlay", "auto", "how packets reach the other node in TestFastPath_soak: auto (directly), vxlan")

const churned = `
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {app: web}}
spec: {nodeName: %[2]s, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
`

// TestFastPath_soak has pods and endpoints come and go, and agents be killed,
// while two clients ask without a pause; in the end the fast path knows the pods
// there are, and no others:
//
//	go test ./lab -run TestFastPath_soak -soak 30m -soak-overlay vxlan -timeout 1h
func TestFastPath_soak(t *testing.T) {
	if *soak == 0 {
		t.Skip("takes as long as it is told to: -soak 30m")
	}
	l := upFast(t, fastPathObjects+stayObjects, "--socket-lb", "on", "--overlay", *soakOverlay)
	entries := map[string]int{"n1": l.settled("n1"), "n2": l.settled("n2")}
	stay := l.steady(l.clusterIP("stay"), *soak)
	want := map[string]int{"n1": l.podsOnFastPath("n1"), "n2": l.podsOnFastPath("n2")}
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- l.askWithoutPause(l.address("web"), stop) }()
	rounds := 0
	for end := time.Now().Add(*soak); time.Now().Before(end); rounds++ {
		l.churn(rounds)
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for _, node := range []string{"n1", "n2"} {
		l.on(node)
		for tries := 0; l.podsOnFastPath(node) != want[node]; tries++ {
			if tries > 100 {
				t.Errorf("%s: %d pods on the fast path, want %d", node, l.podsOnFastPath(node), want[node])
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	r := <-stay
	if r.Failed+r.LongLost > 0 || len(r.Errors) > 0 || r.LongRequests < r.Requests {
		t.Errorf("a Service whose endpoints stay: %+v", r)
	}
	for node, was := range entries {
		for tries := 0; l.mapEntries(node) != was; tries++ {
			if tries > 20 {
				t.Errorf("%s: %d entries in the maps, and %d before", node, l.mapEntries(node), was)
				break
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
	t.Logf("%d rounds; %d requests and %d over 20 long connections to a Service whose endpoints stay; entries in the maps %v", rounds, r.Requests, r.LongRequests, entries)
}

// churn adds two endpoints, kills an agent in some rounds, and removes them.
func (l *fastLab) churn(round int) {
	l.t.Helper()
	file := filepath.Join(l.t.TempDir(), "churn.yaml")
	text := fmt.Sprintf(churned, "churn-1", "n1") + "---" + fmt.Sprintf(churned, "churn-2", "n2")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.run("apply", "-f", file)
	node := []string{"n1", "n2"}[round%2]
	if round%3 == 0 {
		l.t.Logf("round %d at %s: the agent of %s is killed", round, time.Now().UTC().Format(time.TimeOnly), node)
		l.run("agents", "kill", node)
		time.Sleep(50 * time.Millisecond)
		l.run("agents", "start", node)
		l.on(node)
	}
	l.requests("client", 100, "http://"+l.address("churn-1"))
	l.requests("client", 100, "http://"+l.address("churn-2"))
	for _, node := range []string{"client", "web-here"} {
		l.requests(node, 100, "http://"+l.clusterIP("web"))
	}
	l.run("delete", "-f", file)
	// The endpoints are gone when the command ends; then no connection goes there.
	time.Sleep(500 * time.Millisecond)
	l.requests("client", 100, "http://"+l.clusterIP("web"))
}

// stayObjects are a Service whose endpoints stay.
const stayObjects = `---
apiVersion: v1
kind: Pod
metadata: {name: stay-here, labels: {app: stay}}
spec: {nodeName: n1, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stay-there, labels: {app: stay}}
spec: {nodeName: n2, containers: [{name: c, image: nginx, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: stay}
spec: {selector: {app: stay}, ports: [{port: 80}]}
`

// steady asks a Service for so long, 50 times a second, with 20 connections that
// stay.
func (l *fastLab) steady(ip string, d time.Duration) chan lab.TrafficResult {
	cmd := l.user.command(l.t, "lab", "exec", "--name", l.name, "client", "--", "podlane", "lab", "client", "-n", fmt.Sprint(int(50*d.Seconds())),
		"--rate", "50", "--long", "20", "http://"+ip)
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

// settled counts a node's entries once they do not change any more: programs are
// attached after their pods are ready.
func (l *fastLab) settled(node string) int {
	l.t.Helper()
	was := -1
	for range 50 {
		n := l.mapEntries(node)
		if n == was {
			return n
		}
		was = n
		time.Sleep(500 * time.Millisecond)
	}
	l.t.Fatalf("%s: %d entries in the maps, and still others each time", node, was)
	return 0
}

// mapEntries counts what all pinned maps of a node have, from within the lab's
// mounts: there this test runs again.
func (l *fastLab) mapEntries(node string) int {
	l.t.Helper()
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	out := l.run("exec", "node/"+node, "--", "env", countVariable+"="+filepath.Join(l.user.dir(l.name), "bpf", node), self, "-test.run", "^TestMapEntries$", "-test.v")
	match := regexp.MustCompile(`entries: (\d+)`).FindStringSubmatch(out)
	if match == nil {
		l.t.Fatal(out)
	}
	n, _ := strconv.Atoi(match[1])
	return n
}

const countVariable = "PODLANE_TEST_COUNT_MAPS"

// TestMapEntries is run by mapEntries.
func TestMapEntries(t *testing.T) {
	dir := os.Getenv(countVariable)
	if dir == "" {
		t.Skip("runs within a lab, as a part of TestFastPath_soak")
	}
	n := 0
	for _, name := range []string{"v*/pl_pods", "v*/pl_peers", "socket-v*/pl_clients", "socket-v*/pl_services", "socket-v*/pl_slots", "socket-v*/pl_flows", "socket-v*/pl_pair_flows"} {
		pins, _ := filepath.Glob(filepath.Join(dir, name))
		if len(pins) != 1 {
			t.Fatalf("%s is pinned as %v, want one", name, pins)
		}
		m, err := ebpf.LoadPinnedMap(pins[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		key, next := []byte(nil), make([]byte, m.KeySize())
		for err = m.NextKey(nil, next); err == nil; err = m.NextKey(key, next) {
			key = append(key[:0], next...)
			n++
		}
		_ = m.Close()
	}
	pins, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
	fmt.Printf("entries: %d\n", n+len(pins))
}

// askWithoutPause asks a pod that stays, until it is to stop.
func (l *fastLab) askWithoutPause(address string, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		out, err := l.user.command(l.t, "lab", "exec", "--name", l.name, "client", "--", "podlane", "lab", "client", "-n", "2000", "--rate", "200", "http://"+address).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `"failed": 0`) {
			return fmt.Errorf("a pod that stays was not reached: %w: %s", err, out)
		}
	}
}

func (l *fastLab) podsOnFastPath(node string) int {
	l.t.Helper()
	out := l.run("exec", "node/"+node, "--", "podlane", "status", "--json", "--run-dir", l.runDir(node))
	_, fast, _ := strings.Cut(out, `"fastPath"`)
	_, pods, _ := strings.Cut(fast, `"pods": [`)
	pods, _, _ = strings.Cut(pods, "]")
	return len(strings.Fields(strings.ReplaceAll(pods, ",", " ")))
}
