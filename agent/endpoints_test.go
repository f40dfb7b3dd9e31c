package agent

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/proxy"
)

// TestEndpoints: what pods may ask is /healthz and /metrics, and only to read.
func TestEndpoints(t *testing.T) {
	s := &serving{}
	s.because("no podCIDR")
	s.turn.Store(time.Now().UnixNano())
	m := ports.NewMetrics(func() (int, int, error) { return 0, 0, nil }, func() *proxy.Table { return nil }, func() (f, e []ports.ServiceCount, err error) { return nil, nil, nil })
	m.Agent(func() *ports.Figures { return &ports.Figures{Ready: true} }, func() (map[string]uint64, error) { return map[string]uint64{"why": 3}, nil })
	for _, c := range []struct {
		method, path, from string
		want               int
	}{
		{"GET", "/healthz", "10.244.1.5:1234", 200}, {"GET", "/metrics", "10.244.1.5:1234", 200}, {"GET", "/readyz", "10.244.1.5:1234", 403},
		{"GET", "/readyz", "127.0.0.1:1234", 503}, {"GET", "/readyz", "[::ffff:127.0.0.1]:1234", 503}, {"GET", "/readyz", "[::1]:1234", 503},
		{"GET", "/", "10.244.1.5:1234", 404}, {"POST", "/metrics", "127.0.0.1:1234", 405}, {"GET", "/configz", "127.0.0.1:1234", 404},
	} {
		r := httptest.NewRequest(c.method, c.path, nil)
		r.RemoteAddr = c.from
		w := httptest.NewRecorder()
		s.mux(m.Handler()).ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%s %s from %s: %d, want %d", c.method, c.path, c.from, w.Code, c.want)
		}
	}
}

// TestBounded: a connection too many waits until another one ends.
func TestBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bounded{l, make(chan struct{}, 1)}
	server := &http.Server{Handler: http.NotFoundHandler()}
	defer server.Close()
	go func() { _ = server.Serve(b) }()
	idle, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	client := &http.Client{Timeout: 200 * time.Millisecond}
	if _, err := client.Get("http://" + l.Addr().String()); err == nil {
		t.Error("one too many is answered")
	}
	_ = idle.Close()
	client.Timeout = 5 * time.Second
	r, err := client.Get("http://" + l.Addr().String())
	if err != nil {
		t.Fatal("none is answered after the other has ended:", err)
	}
	_ = r.Body.Close()
}
