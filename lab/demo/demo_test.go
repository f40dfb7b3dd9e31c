package demo_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/lab/demo"
	"github.com/podlane/podlane/perf"
)

// podlane builds the program that the demo runs.
func podlane(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "podlane")
	cmd := exec.Command("go", "build", "-o", path, "github.com/podlane/podlane/cmd/podlane")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// play runs the demo as a user would, with few rounds, and reads its document.
func play(t *testing.T, args ...string) (demo.Result, string) {
	t.Helper()
	report := filepath.Join(t.TempDir(), "report.html")
	args = append([]string{"lab", "demo", "--json", "--rounds", "2", "--duration", "100ms", "--report", report}, args...)
	cmd := exec.Command(podlane(t), args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if strings.Contains(errs.String(), "user namespaces") {
			t.Skip(errs.String())
		}
		t.Fatalf("podlane %s: %v\n%s", strings.Join(args, " "), err, errs.String())
	}
	var r demo.Result
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("not one JSON document: %v\n%s", err, out.String())
	}
	return r, report
}

func TestDemo(t *testing.T) {
	r, report := play(t, "--name", fmt.Sprintf("test-demo-%d", os.Getpid()))
	if len(r.Nodes) != 2 {
		t.Errorf("%d nodes, want 2", len(r.Nodes))
	}
	checkAccess(t, r, map[string]int{"node-to-pod-ip": 1, "pod-to-pod-ip": 1, "pod-to-cluster-ip": 1, "pod-to-dns-name": 1})
	checkSpread(t, r, "pod-to-cluster-ip", 2, 0.45, 0.55)
	checkStopped(t, r)
	checkEvaluation(t, r)
	page, err := os.ReadFile(report)
	if err != nil || !bytes.Contains(page, []byte("pod-service-pod")) {
		t.Errorf("report: %v, %d bytes", err, len(page))
	}
}

// Three replicas, other names and ports, UDP, two families, VXLAN.
func TestDemo_otherManifests(t *testing.T) {
	r, _ := play(t, "--name", fmt.Sprintf("test-three-%d", os.Getpid()), "--overlay", "vxlan", "-f", "testdata/three.yaml")
	checkAccess(t, r, map[string]int{"node-to-pod-ip": 2, "pod-to-pod-ip": 2, "pod-to-cluster-ip": 2, "pod-to-dns-name": 2, "pod-to-cluster-ip-second-family": 2})
	checkSpread(t, r, "pod-to-cluster-ip", 3, 0.28, 0.39)
	checkStopped(t, r)
	checkEvaluation(t, r)
}

func checkAccess(t *testing.T, r demo.Result, want map[string]int) {
	t.Helper()
	got := map[string]int{}
	for _, a := range r.Access {
		got[a.Name]++
		answered := 0
		for _, n := range a.ServedBy {
			answered += n
		}
		if !a.OK || a.Failed != 0 || answered != a.Requests || a.Requests == 0 {
			t.Errorf("%s to %s: %+v", a.Name, a.To, a)
		}
	}
	for name, n := range want {
		if got[name] != n {
			t.Errorf("%d accesses %s, want %d", got[name], name, n)
		}
	}
}

func checkSpread(t *testing.T, r demo.Result, name string, pods int, low, high float64) {
	t.Helper()
	for _, a := range r.Access {
		if a.Name != name {
			continue
		}
		if a.Requests != 1000 || len(a.ServedBy) != pods {
			t.Errorf("%s: %d requests answered by %d pods, want 1000 by %d", a.To, a.Requests, len(a.ServedBy), pods)
		}
		for pod, n := range a.ServedBy {
			if part := float64(n) / float64(a.Requests); part < low || part > high {
				t.Errorf("%s: %s answered %.3f, want %.2f to %.2f", a.To, pod, part, low, high)
			}
		}
	}
}

func checkStopped(t *testing.T, r demo.Result) {
	t.Helper()
	if s := r.AgentStopped; s.Requests != 1000 || s.Failed != 0 || s.Counted < 1000 {
		t.Errorf("with the agents killed: %+v", s)
	}
}

func checkEvaluation(t *testing.T, r demo.Result) {
	t.Helper()
	seen := map[string]bool{}
	for _, row := range r.Evaluation {
		seen[row.Path+" "+string(row.Test)] = true
		if row.Median <= 0 || len(row.Rounds) != 2 || row.RatioToNode <= 0 {
			t.Errorf("%s %s: %+v", row.Path, row.Test, row)
		}
		if unit := map[bool]string{true: "s", false: "bytes/s"}[row.Test.Latency()]; row.Unit != unit {
			t.Errorf("%s %s in %s, want %s", row.Path, row.Test, row.Unit, unit)
		}
	}
	for _, path := range []string{perf.NodeNode, perf.PodPod, perf.PodServicePod} {
		for _, test := range []string{"tcp_bw", "tcp_lat", "udp_bw", "udp_lat"} {
			if !seen[path+" "+test] {
				t.Errorf("no figure for %s %s", path, test)
			}
		}
	}
}

// What is wrong with the manifests is said in a line, and nothing stays.
func TestDemo_noService(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.yaml")
	if err := os.WriteFile(empty, []byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(podlane(t), "lab", "demo", "-f", empty).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || !strings.Contains(string(out), "no Service") || strings.Count(string(out), "\n") > 2 {
		t.Errorf("%v: %s", err, out)
	}
}
