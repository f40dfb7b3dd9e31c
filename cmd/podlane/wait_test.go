package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/podlane/podlane/cluster/kube"
)

// TestWaitEverywhere: it ends when the newest pods are ready on all nodes, and goes on
// asking where the server has no answer yet.
func TestWaitEverywhere(t *testing.T) {
	answers := []struct {
		code int
		text string
	}{
		{404, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`},
		{200, `{"metadata": {"generation": 1}, "status": {}}`},
		{200, `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": 1}}`},
		{200, `{"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberReady": 2}}`},
	}
	asked := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a := answers[min(asked, len(answers)-1)]
		asked++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(a.code)
		fmt.Fprint(w, a.text)
	}))
	defer s.Close()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}], clusters: [{name: a, cluster: {server: %q}}], users: [{name: a, user: {}}]}`, s.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := kube.NewAPI(config)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := waitEverywhere(t.Context(), &out, api, "/apis/apps/v1/namespaces/a/daemonsets/b"); err != nil || asked != len(answers) {
		t.Errorf("asked %d times: %v", asked, err)
	}
	if want := "/apis/apps/v1/namespaces/a/daemonsets/b is not there\nready on 0 of 0 nodes\nready on 1 of 2 nodes\nready on 2 of 2 nodes\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
