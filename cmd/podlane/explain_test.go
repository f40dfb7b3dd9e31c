package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/explain"
)

var update = flag.Bool("update", false, "write the golden files")

func explainRun(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"podlane", "explain"}, args...), strings.NewReader(""), &out, &errs)
	return code, out.String(), errs.String()
}

// A question without an answer is one clear line and exit status 2.
func TestExplain_errors(t *testing.T) {
	const nginx = "../../examples/nginx.yaml"
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{"default/nobody", "nginx-service:8000", "-f", nginx}, "no pod default/nobody"},
		{[]string{"curl", "svc/default/nobody:80", "-f", nginx}, "no Service default/nobody"},
		{[]string{"curl", "nginx-service:8000", "-f", nginx, "--node", "n7"}, "no such node"},
		{[]string{"curl", "nginx-service", "-f", nginx}, "want NAME:PORT"},
		{[]string{"curl", "nginx-service:8000", "-f", "/nonexistent"}, "no such file"},
		{[]string{"curl", "nginx-service:8000", "--run-dir", t.TempDir()}, "no agent answers"},
		{[]string{"curl", "nginx-service:8000", "--lab", "no-such-lab-here"}, "no such lab"},
		{[]string{"curl", "nginx-service:8000", "-f", nginx, "-o", "gif"}, "want text"},
		{[]string{"curl"}, "want FROM and TO"},
	} {
		code, stdout, stderr := explainRun(tc.args...)
		if code != 2 || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: status %d, stdout %q, stderr %q", tc.args, code, stdout, stderr)
		}
	}
}

// TestVXLAN_flags: VXLAN's port and VNI are those that the cluster's agents have.
func TestVXLAN_flags(t *testing.T) {
	flags := []string{"-f", "../../examples/nginx.yaml", "--overlay", "vxlan", "--vxlan-port", "4789", "--vxlan-vni", "7"}
	code, stdout, stderr := explainRun(append([]string{"curl", "nginx-service:8000"}, flags...)...)
	if code != 0 || !strings.Contains(stdout, "into VXLAN 7:") || !strings.Contains(stdout, "UDP port 4789;") {
		t.Errorf("explain: status %d, %s%s", code, stdout, stderr)
	}
	plan := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(context.Background(), append([]string{"podlane", "plan", "--node", "n1"}, args...), strings.NewReader(""), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, stdout, stderr = plan(flags...)
	for _, want := range []string{"vxlan id 7 ", "dstport 4789 ", "udp dport 4789 goto vxlan"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("plan: status %d, no %q in %s%s", code, want, stdout, stderr)
		}
	}
	if code, _, stderr := plan("-f", "../../examples/nginx.yaml", "--vxlan-port", "8473"); code == 0 || !strings.Contains(stderr, "agents' probes") {
		t.Errorf("the port of the probes: status %d, %s", code, stderr)
	}
}

func TestExplain_manifests(t *testing.T) {
	code, stdout, stderr := explainRun("curl", "nginx-service:8000", "-f", "../../examples/nginx.yaml", "-o", "json")
	var a explain.Answer
	if err := json.Unmarshal([]byte(stdout), &a); err != nil || code != 0 {
		t.Fatalf("status %d, %v: %s", code, err, stderr)
	}
	if a.Verdict != explain.Delivered || len(a.Paths) != 2 || a.Paths[0].Fraction != "1/2" {
		t.Errorf("%+v", a)
	}
	code, stdout, stderr = explainRun("curl", "nobody:8000", "-f", "../../examples/nginx.yaml")
	if code != 0 || !strings.Contains(stdout, "NXDOMAIN") || !strings.Contains(stdout, "verdict: no-name") {
		t.Errorf("a name that does not exist: status %d, %s%s", code, stdout, stderr)
	}
}

// The JSON is stable: a script that reads it goes on working. Fields may be added.
func TestExplain_json(t *testing.T) {
	for name, args := range map[string][]string{
		"service": {"curl", "nginx-service:8000"}, "node": {"node/n1", "svc/default/nginx-service:8000"}, "outside": {"203.0.113.9", "10.96.0.10:53", "--protocol", "udp", "--node", "n2"},
	} {
		code, stdout, stderr := explainRun(append(args, "-f", "../../examples/nginx.yaml", "-o", "json")...)
		if code != 0 {
			t.Errorf("%s: status %d: %s", name, code, stderr)
			continue
		}
		golden := filepath.Join("testdata", "explain-"+name+".json")
		if *update {
			if err := os.WriteFile(golden, []byte(stdout), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if stdout != string(want) {
			t.Errorf("%s is not %s (-update writes it):\n%s", name, golden, stdout)
		}
	}
}
