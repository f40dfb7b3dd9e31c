package ports

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

func newRecorder() *httptest.ResponseRecorder { return httptest.NewRecorder() }

func testMetrics(counts ReadCounts) *Metrics {
	local := entry("web", 0, 0, 0)
	local.Ports = []proxy.Port{{InternalLocal: true, ExternalLocal: true, Endpoints: [2]proxy.Endpoints{{Any: true}, {}}}, {InternalLocal: true}}
	return NewMetrics(func() (int, int, error) { return 5, 100, nil }, func() *proxy.Table { return tableOf(local) }, counts)
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fetch(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	var err error
	for range 500 {
		var r *http.Response
		if r, err = http.Get(url); err == nil {
			defer r.Body.Close()
			text, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			return r.StatusCode, string(text), r.Header
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
	return 0, "", nil
}

func TestPorts(t *testing.T) {
	m := testMetrics(func() (frontends, endpoints []ServiceCount, err error) {
		web := cluster.Key{Namespace: "default", Name: "web"}
		return []ServiceCount{{web, "http", "TCP", "10.96.0.1:80", 7}}, []ServiceCount{{web, "http", "TCP", "10.244.0.2:8080", 3}}, nil
	})
	p := &Ports{Addresses: Addresses{Health: freePort(t), Metrics: freePort(t)}, Health: &Health{}, Metrics: m,
		Mode: "nftables", Config: map[string]string{"node": "n1"}, Log: slog.New(slog.DiscardHandler)}
	p.On.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = p.Run(ctx) }()
	m.Queued(2, 3)
	m.Synced(3*time.Millisecond, []time.Time{time.Now().Add(-time.Second)})
	m.Reconciled(false, time.Millisecond, map[cluster.Key]int{{Namespace: "default", Name: "dns"}: 4})
	m.Reconciled(true, time.Millisecond, nil)
	for url, want := range map[string]string{
		p.Addresses.Health + "/healthz":    `"lastUpdated":"`,
		p.Addresses.Health + "/livez":      `"healthy":true`,
		p.Addresses.Metrics + "/proxyMode": "nftables",
		p.Addresses.Metrics + "/healthz":   "ok",
		p.Addresses.Metrics + "/configz":   `{"node":"n1"}`,
	} {
		code, text, header := fetch(t, "http://"+url)
		if code != 200 || !strings.Contains(text, want) || header.Get("Server") != Server {
			t.Errorf("%s: %d %s %v", url, code, text, header)
		}
	}
	_, text, _ := fetch(t, "http://"+p.Addresses.Metrics+"/metrics")
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family="IPv6",le="0.004"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="0.5"} 0`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="2"} 1`,
		`kubeproxy_network_programming_duration_seconds_bucket{ip_family="IPv4",le="300"} 1`,
		`kubeproxy_sync_proxy_rules_service_changes_total 2`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total 3`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="internal"} 1`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv6",traffic_policy="external"} 0`,
		`kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="IPv4"} 4`,
		`podlane_stale_flows_deleted_total{namespace="default",service="dns"} 4`,
		`podlane_conntrack_flows 5`,
		`podlane_conntrack_flows_max 100`,
		`podlane_service_new_flows_total{frontend="10.96.0.1:80",namespace="default",port="http",protocol="TCP",service="web"} 7`,
		`podlane_endpoint_new_flows_total{endpoint="10.244.0.2:8080",namespace="default",port="http",protocol="TCP",service="web"} 3`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} 1.`,
		`kubeproxy_proxy_healthz_total{code="200"} 1`,
		`process_resident_memory_bytes`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics has not %s", want)
		}
	}
	cancel()
	<-ended
}

// TestPorts_bucketsAreKubeProxys pins the ends of the buckets, which dashboards
// add up over nodes of both kinds.
func TestPorts_bucketsAreKubeProxys(t *testing.T) {
	b := programmingBuckets()
	if len(b) != 2+59+12+7 || b[0] != 0.25 || b[2] != 1 || b[60] != 59 || b[61] != 60 || b[73] != 120 || b[79] != 300 {
		t.Errorf("%d buckets: %v", len(b), b)
	}
}

func TestPorts_countersUnreadable(t *testing.T) {
	m := testMetrics(func() (_, _ []ServiceCount, err error) { return nil, nil, errors.New("no netlink") })
	p := &Ports{Addresses: Addresses{Metrics: freePort(t)}, Health: &Health{}, Metrics: m, Log: slog.New(slog.DiscardHandler)}
	p.On.Store(true)
	go func() { _ = p.Run(t.Context()) }()
	if _, text, _ := fetch(t, "http://"+p.Addresses.Metrics+"/metrics"); !strings.Contains(text, "podlane_conntrack_flows 5") {
		t.Errorf("one reading that fails takes the others with it: %s", text)
	}
}

// TestPorts_leftToKubeProxy: while the Services are another proxy's, its ports are
// not taken; a port that is in use is tried again.
func TestPorts_leftToKubeProxy(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for ports to be tried again")
	}
	p := &Ports{Addresses: Addresses{Health: freePort(t)}, Health: &Health{}, Metrics: testMetrics(nil), Log: slog.New(slog.DiscardHandler)}
	go func() { _ = p.Run(t.Context()) }()
	time.Sleep(100 * time.Millisecond)
	taken, err := net.Listen("tcp", p.Addresses.Health)
	if err != nil {
		t.Fatalf("the port is taken though the Services are not ours: %v", err)
	}
	p.On.Store(true)
	time.Sleep(rebind + 100*time.Millisecond)
	_ = taken.Close()
	if code, _, _ := fetch(t, "http://"+p.Addresses.Health+"/livez"); code != 200 {
		t.Errorf("once the port is free: %d", code)
	}
}
