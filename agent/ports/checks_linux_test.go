package ports

import (
	"bufio"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/proxy"
)

func tableOf(entries ...*proxy.Entry) *proxy.Table {
	set := map[cluster.Key]*proxy.Entry{}
	for _, e := range entries {
		set[e.Key] = e
	}
	return &proxy.Table{Services: cluster.Map[proxy.Entry]{}.With(set)}
}

func entry(name string, port uint16, v4, v6 int) *proxy.Entry {
	return &proxy.Entry{Key: cluster.Key{Namespace: "default", Name: name}, HealthCheckNodePort: port, LocalReady: [2]int{v4, v6}}
}

// get asks from the test's own thread, which is in the test's namespace; the
// connections of package http are made by other ones.
func get(t *testing.T, addr string) (*http.Response, serviceText) {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, serviceText{}
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /healthz HTTP/1.0\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var text serviceText
	if err := json.NewDecoder(r.Body).Decode(&text); err != nil {
		t.Fatal(err)
	}
	return r, text
}

func TestChecks(t *testing.T) {
	nettest.New(t)
	h := &Health{}
	c := NewChecks(h, slog.New(slog.DiscardHandler))
	defer c.Close()
	want := func(what, addr string, code int, endpoints int64) {
		t.Helper()
		r, text := get(t, addr)
		switch {
		case code == 0 && r == nil:
		case r == nil || r.StatusCode != code || text.LocalEndpoints != endpoints || text.Service.Namespace+"/"+text.Service.Name != "default/web" ||
			r.Header.Get("X-Load-Balancing-Endpoint-Weight") != fmt.Sprint(endpoints) || text.ServiceProxyHealthy != h.Healthy():
			t.Errorf("%s: %s: %+v %+v, want %d and %d endpoints", what, addr, r, text, code, endpoints)
		}
	}
	c.Update(tableOf(entry("web", 0, 2, 0)))
	want("no such port", "127.0.0.1:32000", 0, 0)
	c.Update(tableOf(entry("web", 32000, 2, 0)))
	want("two of IPv4", "127.0.0.1:32000", 200, 2)
	want("none of IPv6", "[::1]:32000", 503, 0)
	c.Update(tableOf(entry("web", 32000, 0, 1)))
	want("the other way round", "127.0.0.1:32000", 503, 0)
	want("the other way round", "[::1]:32000", 200, 1)
	c.Update(tableOf(entry("web", 32001, 1, 1)))
	want("another port", "127.0.0.1:32000", 0, 0)
	want("another port", "127.0.0.1:32001", 200, 1)
	c.Update(tableOf(entry("web", 0, 1, 1)))
	want("policy Cluster again", "127.0.0.1:32001", 0, 0)
	c.Update(tableOf(entry("web", 32001, 1, 1)))
	want("and Local again", "127.0.0.1:32001", 200, 1)
	c.Update(tableOf())
	want("deleted", "127.0.0.1:32001", 0, 0)
	if ps := c.Problems(); len(ps) != 0 {
		t.Errorf("problems: %v", ps)
	}
}

func TestChecks_portInUse(t *testing.T) {
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			nettest.New(t)
			taken, err := net.Listen(network, ":32000")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			c := NewChecks(&Health{}, slog.New(slog.DiscardHandler))
			defer c.Close()
			var warned []string
			c.Warn = func(k cluster.Key, reason, message string) {
				warned = append(warned, k.String()+" "+reason+" "+message)
			}
			c.Update(tableOf(entry("web", 32000, 1, 1), entry("other", 32001, 1, 1)))
			ps := c.Problems()
			c.Retry()
			if len(warned) != 1 || !strings.HasPrefix(warned[0], "default/web FailedToStartServiceHealthcheck healthCheckNodePort 32000: ") {
				t.Errorf("warned %q, want it of default/web, once", warned)
			}
			if len(ps) != 1 || ps[0].Key.Name != "web" || !strings.Contains(ps[0].Err, "address already in use") {
				t.Errorf("problems: %v", ps)
			}
			if r, _ := get(t, "127.0.0.1:32001"); r == nil || r.StatusCode != 200 {
				t.Errorf("the other Service: %+v", r)
			}
			if err := taken.Close(); err != nil {
				t.Fatal(err)
			}
			c.Retry()
			if r, _ := get(t, "127.0.0.1:32000"); r == nil || r.StatusCode != 200 || len(c.Problems()) != 0 {
				t.Errorf("once the port is free: %+v, %v", r, c.Problems())
			}
		})
	}
}

func TestChecks_proxyUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Health{}
		c := NewChecks(h, slog.New(slog.DiscardHandler))
		s := &check{key: cluster.Key{Namespace: "default", Name: "web"}}
		s.endpoints[0].Store(3)
		h.Queued()
		time.Sleep(Late)
		w := newRecorder()
		c.handler(s, 0).ServeHTTP(w, nil)
		if w.Code != 503 || !strings.Contains(w.Body.String(), `"serviceProxyHealthy":false`) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// TestChecks_nodePortAddresses: the servers answer where NodePorts do.
func TestChecks_nodePortAddresses(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "ip", "addr", "add", "192.0.2.1/32", "dev", "lo")
	c := NewChecks(&Health{}, slog.New(slog.DiscardHandler))
	defer c.Close()
	tb := tableOf(entry("web", 32000, 1, 1))
	for addr, only := range map[string]string{"192.0.2.1": "127.0.0.1", "127.0.0.1": "192.0.2.1"} {
		next := &proxy.Table{Services: tb.Services, NodePorts: []netip.Prefix{netip.MustParsePrefix(addr + "/32")}}
		c.Update(next)
		if r, _ := get(t, addr+":32000"); r == nil || r.StatusCode != 200 {
			t.Errorf("%s alone: %+v", addr, r)
		}
		conn, err := net.Dial("tcp", only+":32000")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%s answers, which is no address for NodePorts: %v", only, err)
		}
		_ = conn.Close()
	}
}
