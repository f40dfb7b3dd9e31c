package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/kube"
)

// api notes what is written to it.
type api struct {
	mu     sync.Mutex
	writes []string
	away   bool
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.away {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	what := string(body)
	var c struct {
		Status struct {
			Conditions []struct{ Type, Status, Reason string }
		}
	}
	if json.Unmarshal(body, &c) == nil && len(c.Status.Conditions) == 1 {
		what = fmt.Sprint(c.Status.Conditions[0])
	}
	for _, reason := range []string{reasonReady, reasonUnready, reasonLost} {
		if strings.Contains(r.URL.Path, "events") && strings.Contains(what, reason) {
			what = reason
		}
	}
	a.writes = append(a.writes, r.Method+" "+r.URL.Path+" "+what)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Success"}`))
}

func (a *api) until(t *testing.T, n int) []string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		a.mu.Lock()
		writes := a.writes
		a.mu.Unlock()
		if len(writes) >= n {
			return writes
		}
		if time.Now().After(end) {
			t.Fatalf("%d writes: %q, want %d", len(writes), writes, n)
		}
	}
}

// TestTelling goes through a node's life, and counts what is written: at rest
// nothing.
func TestTelling(t *testing.T) {
	server := &api{away: true}
	s := httptest.NewServer(server)
	defer s.Close()
	config := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {token: t}}]}`, s.URL)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := kube.NewReporter(kube.Options{Kubeconfig: config, Node: "n1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = r.Run(ctx) }()

	start := time.Unix(1e9, 0)
	tell := newTelling(r)
	tell.uid = "uid"
	at := func(after time.Duration, why string) { tell.condition(start.Add(after), why, after) }
	at(time.Second, "no podCIDR") // a start takes time
	at(20*time.Second, "no podCIDR")
	server.mu.Lock()
	server.away = false // what was said meanwhile is not lost
	server.mu.Unlock()
	got := server.until(t, 2)
	if got[0] != "PATCH /api/v1/nodes/n1/status {NetworkUnavailable True PodlaneCannotServePods}" || got[1] != "POST /api/v1/namespaces/default/events "+reasonUnready {
		t.Errorf("%q", got)
	}
	at(30*time.Second, "no podCIDR")
	at(40*time.Second, "")
	if got = server.until(t, 4); got[2] != "PATCH /api/v1/nodes/n1/status {NetworkUnavailable False PodlaneReady}" || !strings.HasSuffix(got[3], reasonReady) {
		t.Errorf("%q", got)
	}
	for i := range 1000 { // at rest, and with troubles that pass
		why := ""
		if i%7 == 3 {
			why = "netlink: try again"
		}
		at(time.Minute+time.Duration(i)*30*time.Second, why)
	}
	lost := []cluster.Problem{{Kind: "way to node", Key: cluster.Key{Name: "n2"}, Err: "is lost"}}
	for i := range 10 { // five minutes of a trouble: one Event
		tell.troubles(start.Add(24*time.Hour+time.Duration(i)*30*time.Second), lost, reasonLost)
	}
	server.until(t, 5)
	time.Sleep(100 * time.Millisecond)
	if got = server.until(t, 5); len(got) != 5 || !strings.HasSuffix(got[4], reasonLost) {
		t.Errorf("%d writes: %q", len(got), got)
	}
}
