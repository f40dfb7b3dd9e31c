package live_test

import (
	"context"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/explain/live"
	"github.com/podlane/podlane/explain/view"
	"github.com/podlane/podlane/lab"
)

// serve serves the page of a lab and gives its address.
func serve(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- (&view.Viewer{Name: "lab " + name, Source: live.LabView{Name: name}}).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String() + "/"
}

// The page in a real browser: what it draws, and the path that a link asks for.
func TestViewer(t *testing.T) {
	w := up(t, lab.Options{Nodes: 2}, scene)
	w.settled()
	url := serve(t, w.name)
	browser, err := exec.LookPath("chromium")
	if err != nil {
		t.Skip("needs chromium: ", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+t.TempDir(),
		"--virtual-time-budget=6000", "--dump-dom", url+"#from=default/client&to=svc/default/web").Output()
	if err != nil {
		t.Skipf("chromium does not run here: %v", err)
	}
	for _, want := range []string{"2 nodes", "node n1", "default/client", "default/web", "svc/default/web: delivered", "SERVICE default/web", "data:image/svg+xml"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the page has no %q:\n%s", want, out)
		}
	}
}

// Another site's page cannot read it, and what does not exist is said in a line.
func TestViewer_local(t *testing.T) {
	url := serve(t, "no-such-lab")
	for host, want := range map[string]int{"": http.StatusOK, "localhost:1": http.StatusOK, "evil.example": http.StatusForbidden, "10.0.0.1": http.StatusForbidden} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("Host %q: %d, want %d", host, resp.StatusCode, want)
		}
	}
	resp, err := http.Get(url + "api/cluster")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadGateway {
		t.Errorf("no lab: %d", resp.StatusCode)
	}
}
