package kubedns

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster/kube"
)

func TestTenth(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.96.0.0/12": "10.96.0.10", "10.43.0.7/16": "10.43.0.10", "fd00:96::/112": "fd00:96::a", "10.0.0.240/28": "10.0.0.250",
		"10.0.0.248/29": "the Service range 10.0.0.248/29 has no tenth address: say which one with --dns-ip", "x": `the range "x"`,
	} {
		got, err := tenth(cidr)
		text := got.String()
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%s: %s, want %s", cidr, text, want)
		}
	}
}

// TestBeforeRanges: a server before Kubernetes 1.33 has no ServiceCIDRs; the
// control plane stand-ins of the other tests cannot be one. test/dns has the rest,
// against a real server.
func TestBeforeRanges(t *testing.T) {
	var made []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch path := r.URL.Path; {
		case r.Method == http.MethodPost:
			made, _ = io.ReadAll(r.Body)
			_, _ = w.Write(made)
		case strings.HasSuffix(path, "daemonsets/podlane-dns"):
			fmt.Fprint(w, `{"metadata": {"uid": "u"}, "spec": {"selector": {"matchLabels": {"a": "b"}}}}`)
		case strings.HasSuffix(path, "default/services/kubernetes"):
			fmt.Fprint(w, `{"spec": {"clusterIPs": ["10.152.183.1"]}}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}`)
		}
	}))
	defer server.Close()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}], clusters: [{name: c, cluster: {server: "%s"}}]}`, server.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	api, err := kube.NewAPI(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Read(t.Context(), api, Options{Service: Name{"kube-system", "kube-dns"}, DaemonSet: Name{"kube-system", "podlane-dns"}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Make(t.Context(), &out); err != nil || !strings.Contains(string(made), `"clusterIPs":["10.152.183.10"]`) {
		t.Errorf("%v: %s", err, made)
	}
}

// A Service of another namespace cannot lead to the servers, and nothing is read for it.
func TestRead_twoNamespaces(t *testing.T) {
	_, err := Read(t.Context(), nil, Options{Service: Name{"kube-system", "kube-dns"}, DaemonSet: Name{"podlane", "podlane-dns"}})
	if err == nil || !strings.Contains(err.Error(), "two namespaces") {
		t.Error(err)
	}
}

// A switched Service whose selector somebody has mixed with his own is switched once
// more, and still knows the way back.
func TestSwitched_again(t *testing.T) {
	of := func(s object) object { return s["spec"].(object)["selector"].(object) }
	s := object{"metadata": object{}, "spec": object{"selector": object{"k8s-app": "kube-dns"}, "ports": []any{}}}
	for range 2 {
		var err error
		if s, err = switched(s, map[string]string{"app": "podlane"}); err != nil {
			t.Fatal(err)
		}
		s["spec"].(object)["selector"] = object{"app": "podlane", "k8s-app": "kube-dns"}
	}
	back, labels, err := restored(s)
	if err != nil || len(labels) != 1 || len(of(back)) != 1 || labels["k8s-app"] != "kube-dns" {
		t.Errorf("%v %v: %v", back, labels, err)
	}
}
