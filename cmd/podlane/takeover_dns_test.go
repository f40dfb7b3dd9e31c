package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// apiOf is a kubeconfig of an API server that has these objects and takes no change.
func apiOf(t *testing.T, objects map[string]string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		object, has := objects[r.URL.Path]
		if r.Method != http.MethodGet || !has {
			w.WriteHeader(http.StatusNotFound)
			object = `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`
		}
		fmt.Fprint(w, object)
	}))
	t.Cleanup(server.Close)
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "%s"}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTakeoverDNS_json(t *testing.T) {
	const (
		system  = "/api/v1/namespaces/kube-system/"
		ours    = `{"metadata": {"uid": "u"}, "spec": {"selector": {"matchLabels": {"app": "podlane"}}}, "status": {"numberReady": 1, "desiredNumberScheduled": 2}}`
		service = `{"metadata": {}, "spec": {"clusterIPs": ["10.96.0.10"], "selector": {%q: %q}, "ports": [{"port": 53, "protocol": "UDP"}]}}`
		files   = `{"data": {"Corefile": ".:53 {\n kubernetes cluster.local\n rewrite name a b\n}\n"}}`
	)
	with := func(selector ...any) map[string]string {
		objects := map[string]string{"/apis/apps/v1/namespaces/kube-system/daemonsets/podlane-dns": ours, system + "configmaps/coredns": files}
		if len(selector) > 0 {
			objects[system+"services/kube-dns"] = fmt.Sprintf(service, selector...)
		}
		return objects
	}
	for _, c := range []struct {
		name            string
		objects         map[string]string
		args            string
		action, leadsTo string
		step            string // the beginning of one
		problems        int
		failed          string
	}{
		{"CoreDNS", with("k8s-app", "kube-dns"), "", "over", "others", "3. lead the Service to them", 1, ""},
		{"only where there is none", with("k8s-app", "kube-dns"), "--create-only", "none", "others", "nothing was changed", 0, ""},
		{"ours", with("app", "podlane"), "--yes", "none", "podlane", "nothing to do", 0, ""},
		{"none", with(), "--dns-ip 10.96.0.10", "make", "", "1. make the Service kube-system/kube-dns at 10.96.0.10", 0, ""},
		{"no way back", with(), "--undo", "back", "", "", 0, "there is no Service to switch back"},
		{"refused", with(), "--yes --dns-ip 10.96.0.10", "make", "", "", 0, "the Service kube-system/kube-dns at 10.96.0.10"},
	} {
		var out, errs bytes.Buffer
		words := append([]string{"podlane", "takeover", "dns", "--json", "--kubeconfig", apiOf(t, c.objects)}, strings.Fields(c.args)...)
		status := run(context.Background(), words, strings.NewReader(""), &out, &errs)
		var r takeoverDNSReport
		if err := json.Unmarshal(out.Bytes(), &r); err != nil || (status != 0) != (c.failed != "") {
			t.Errorf("%s: status %d, %v\n%s%s", c.name, status, err, &out, &errs)
			continue
		}
		said := c.step == "" || slices.ContainsFunc(r.Steps, func(s string) bool { return strings.HasPrefix(s, c.step) })
		if r.Action != c.action || r.Done || r.Found.LeadsTo != c.leadsTo || r.Found.Ready != 1 || r.Found.Desired != 2 || !said || len(r.NotTakenOver) != c.problems {
			t.Errorf("%s: %+v", c.name, r)
		}
		if !strings.Contains(r.Error, c.failed) || (r.Error != "") != (c.failed != "") || !strings.Contains(errs.String(), c.failed) {
			t.Errorf("%s: error %q, stderr %q", c.name, r.Error, &errs)
		}
	}
}
