package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func kubeconfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func server(addr string) string {
	return fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u, user: {token: t}}]}`, addr)
}

func TestNew_errors(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	missing := filepath.Join(t.TempDir(), "missing")
	malformed := kubeconfig(t, "{ malformed")
	noContext := kubeconfig(t, "{apiVersion: v1, kind: Config, current-context: gone}")
	for _, test := range []struct {
		name, path string
		kinds      Kinds
		want       []string
	}{
		{"missing", missing, Nodes, []string{"kubeconfig: ", missing, "no such file"}},
		{"malformed", malformed, Nodes, []string{"kubeconfig " + malformed, "yaml"}},
		{"no context", noContext, Nodes, []string{"kubeconfig " + noContext, "specified context: gone"}},
		{"no cluster", "", Nodes, []string{"no kubeconfig was given", "no pod of a cluster"}},
		{"no kinds", kubeconfig(t, server("127.0.0.1:1")), 0, []string{"no kinds"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := New(Options{Kubeconfig: test.path, Kinds: test.kinds})
			for _, w := range test.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q in it", err, w)
				}
			}
		})
	}
}

func TestKindsOf(t *testing.T) {
	for of, want := range map[Kinds]string{
		ForAgent: "nodes pods[spec.nodeName=n1] servicecidrs services[!service.kubernetes.io/service-proxy-name,spec.clusterIP!=None] endpointslices[!service.kubernetes.io/headless]",
		ForDNS: "namespaces services endpointslices[service.kubernetes.io/headless] " +
			"endpointslices[!service.kubernetes.io/headless,endpointslice.kubernetes.io/managed-by!=endpointslice-controller.k8s.io]",
		Services | AllServices: "services endpointslices",
	} {
		var got []string
		for _, k := range kindsOf(of, "n1") {
			s := k.resource
			if sel := strings.Trim(k.labels+","+k.fields, ","); sel != "" {
				s += "[" + sel + "]"
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%b: got %s, want %s", of, strings.Join(got, " "), want)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.String()
}

// TestRun_serverAway: nothing listens there. The Source goes on trying, logs it
// once for all kinds, publishes nothing and ends when it is told to.
func TestRun_serverAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var log lockedBuffer
	s, err := New(Options{Kubeconfig: kubeconfig(t, server(addr)), Kinds: ForAgent, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for end := time.Now().Add(20 * time.Second); len(s.Problems()) < 4; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("problems: %v", s.Problems())
		}
	}
	for _, p := range s.Problems() {
		if !strings.Contains(p.Err, "cannot be reached") || !strings.Contains(p.Err, addr) {
			t.Errorf("problem %q", p)
		}
	}
	if n := strings.Count(log.String(), "level="); n != 1 {
		t.Errorf("%d lines were logged:\n%s", n, log.String())
	}
	select {
	case <-s.Snapshots():
		t.Error("a Snapshot was published")
	default:
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Run did not end")
	}
}

func TestDescribe(t *testing.T) {
	gr := schema.GroupResource{Group: "discovery.k8s.io", Resource: "endpointslices"}
	for _, test := range []struct {
		err         error
		class, text string
	}{
		{apierrors.NewForbidden(gr, "", errors.New("no")), "endpointslices", "may not list"},
		{apierrors.NewUnauthorized("who"), away, "does not accept the credentials"},
		{apierrors.NewTimeoutError("slow", 1), "endpointslices", "list: Timeout"},
		{errors.New("connection refused"), away, "cannot be reached"},
	} {
		if got := describe("endpointslices", "list", test.err); got.class != test.class || !strings.Contains(got.text, test.text) {
			t.Errorf("got %+v", got)
		}
	}
}
