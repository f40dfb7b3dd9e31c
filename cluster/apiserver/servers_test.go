package apiserver

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/podlane/podlane/cluster"
)

func server(t *testing.T, says string) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(says)) }))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	var b bytes.Buffer
	_, _ = b.ReadFrom(r.Body)
	return b.String()
}

// TestServers ends the first server, and starts anew while it is away.
func TestServers(t *testing.T) {
	one, two := server(t, "one"), server(t, "two")
	first := strings.TrimPrefix(one.URL, "http://")
	second := netip.MustParseAddrPort(strings.TrimPrefix(two.URL, "http://"))
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	s, err := New(first, "the setting", dir, log)
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: s.Transport(&http.Transport{DisableKeepAlives: true}, &http.Transport{DisableKeepAlives: true})}
	if got := get(t, c, one.URL); got != "one" || s.InUse() != "https://"+first+" (the setting)" {
		t.Error(got, s.InUse())
	}
	s.Learn([]netip.AddrPort{second})
	s.Learn(nil) // is no news
	one.Close()
	if got := get(t, c, one.URL); got != "two" || !strings.Contains(s.InUse(), second.String()) || !strings.Contains(s.InUse(), first+" does not answer") {
		t.Error(got, s.InUse())
	}
	if s, err = New(first, "the setting", dir, log); err != nil {
		t.Fatal(err)
	}
	c.Transport = s.Transport(http.DefaultTransport, http.DefaultTransport)
	if got := get(t, c, one.URL); got != "two" {
		t.Error("an agent that starts now:", got)
	}
	two.Close()
	if got := get(t, c, one.URL); !strings.Contains(got, first) || !strings.Contains(got, second.String()) {
		t.Error("none answers, and the error does not name both:", got)
	}
}

// TestServers_body: what writes is not sent twice.
func TestServers_body(t *testing.T) {
	two := server(t, "two")
	s, _ := New("127.0.0.1:1", "", "", slog.New(slog.DiscardHandler))
	s.Learn([]netip.AddrPort{netip.MustParseAddrPort(strings.TrimPrefix(two.URL, "http://"))})
	c := &http.Client{Transport: s.Transport(http.DefaultTransport, http.DefaultTransport)}
	if _, err := c.Post("http://127.0.0.1:1", "text/plain", strings.NewReader("x")); err == nil {
		t.Error("a request with a body went to another server")
	}
}

func TestEndpoints(t *testing.T) {
	b := cluster.NewBuilder()
	slice := func(name, service string, ready bool, addr string) {
		b.SetSlice(&cluster.EndpointSlice{Key: cluster.Key{Namespace: "default", Name: name}, Service: service,
			Ports:     []cluster.EndpointPort{{Name: "https", Protocol: cluster.TCP, Port: 6443}},
			Endpoints: []cluster.Endpoint{{Address: netip.MustParseAddr(addr), Ready: ready}}})
	}
	slice("kubernetes", "kubernetes", true, "192.0.2.2")
	slice("kubernetes-2", "kubernetes", true, "192.0.2.1")
	slice("kubernetes-3", "kubernetes", false, "192.0.2.3")
	slice("web", "web", true, "192.0.2.4")
	got := Endpoints(b.Publish())
	if len(got) != 2 || got[0].String() != "192.0.2.1:6443" || got[1].String() != "192.0.2.2:6443" {
		t.Error(got)
	}
}
