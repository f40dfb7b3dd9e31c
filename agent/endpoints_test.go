package agent

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"syscall"
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

// others has the first so many connections come from a pod.
type others struct {
	net.Listener
	n int
}

type otherConn struct{ net.Conn }

func (otherConn) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.244.1.5:1234"))
}

func (o *others) Accept() (net.Conn, error) {
	c, err := o.Listener.Accept()
	if o.n--; err != nil || o.n < 0 {
		return c, err
	}
	return otherConn{c}, nil
}

// TestBounded: a pod that holds as many connections as it can gets no more of them,
// and neither keeps the kubelet out nor itself for ever.
func TestBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	defer server.Close()
	room := make(chan struct{}, mostConnections)
	go func() { _ = server.Serve(&bounded{&others{l, mostConnections + 1}, room}) }()
	var idle []net.Conn
	for range mostConnections + 1 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
	}
	last := idle[mostConnections]
	_ = last.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("one too many is kept: %v", err)
	}
	client := &http.Client{Timeout: 5 * time.Second}
	r, err := client.Get("http://" + l.Addr().String() + "/healthz")
	if err != nil {
		t.Fatal("the node itself is kept out:", err)
	}
	_ = r.Body.Close()
	_ = idle[0].Close()
	for end := time.Now().Add(5 * time.Second); len(room) == mostConnections; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a connection that has ended keeps its room")
		}
	}
}
