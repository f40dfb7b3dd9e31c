package main

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/podlane/podlane/explain"
)

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
