package scale

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/podlane/podlane/test/e2e/internal/control"
)

// requests are counted on their way to the API server.
type requests struct {
	addr string
	mu   sync.Mutex
	of   map[string]int
}

func countRequests(t *testing.T, p *control.Plane) *requests {
	t.Helper()
	to := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "https", Host: p.Addr})
	// The way is inside of this namespace; the certificate is the control plane's own.
	to.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	to.FlushInterval = -1
	r := &requests{of: map[string]int{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.addr = l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		path := req.URL.Path
		if req.URL.Query().Get("watch") != "" {
			path += " (watch)"
		}
		r.mu.Lock()
		r.of[req.Method+" "+path]++
		r.mu.Unlock()
		req.Header.Set("Authorization", "Bearer "+control.Admin) // a client sends no token without TLS
		to.ServeHTTP(w, req)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = server.Close() })
	return r
}

// reset gives what was counted, and begins anew.
func (r *requests) reset() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := r.of
	r.of = map[string]int{}
	return of
}

func (r *requests) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u, user: {}}]}`, r.addr)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
