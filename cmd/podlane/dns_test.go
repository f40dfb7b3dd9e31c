package main

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

const dnsManifest = `apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: shop}
spec:
  clusterIP: 10.96.7.7
  clusterIPs: [10.96.7.7]
  ports: [{name: http, port: 80}]
`

// buffer is the log of a running command.
type buffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// match waits for a line of the log and gives the expression's groups.
func (b *buffer) match(t *testing.T, expr string) []string {
	t.Helper()
	re := regexp.MustCompile(expr)
	for range 200 {
		b.mu.Lock()
		m := re.FindStringSubmatch(b.b.String())
		b.mu.Unlock()
		if m != nil {
			return m
		}
		time.Sleep(25 * time.Millisecond)
	}
	t.Fatalf("no %q in the log:\n%s", expr, b.b.String())
	return nil
}

func startDNS(t *testing.T, args ...string) (log *buffer, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	log = &buffer{}
	cmd := newDNS()
	cmd.SetArgs(args)
	cmd.SetErr(log)
	cmd.SetOut(io.Discard)
	cmd.SilenceUsage, cmd.SilenceErrors = true, true
	done := make(chan error, 1)
	go func() { done <- cmd.ExecuteContext(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return log, stop
}

func askDNS(t *testing.T, addr, name string) *mdns.Msg {
	t.Helper()
	r, err := mdns.Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), addr)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(r.Body)
	return r.StatusCode, string(b)
}

func writeManifest(t *testing.T, dir, name string) {
	t.Helper()
	text := strings.ReplaceAll(dnsManifest, "NAME", name)
	if err := os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestDNS runs the verb over a folder: what is added there is answered, health
// and metrics are there, and it ends in time.
func TestDNS(t *testing.T) {
	dir := t.TempDir()
	writeManifest(t, dir, "web")
	log, stop := startDNS(t, "--manifests", dir, "--listen", "127.0.0.1:0", "--upstream", "none",
		"--health", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--lame-duck", "900ms", "--log-queries")
	addr := log.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	web := log.match(t, `http" addr=(\S+)`)[1]
	log.match(t, "dns: synced")

	if r := askDNS(t, addr, "web.shop.svc.cluster.local."); len(r.Answer) != 1 {
		t.Errorf("%v", r)
	}
	if r := askDNS(t, addr, "example.com."); r.Rcode != mdns.RcodeRefused {
		t.Errorf("--upstream none: %v", r)
	}
	log.match(t, `query.*name=web.shop.svc.cluster.local. type=A .*code=NOERROR`)
	writeManifest(t, dir, "later")
	for i := 0; len(askDNS(t, addr, "later.shop.svc.cluster.local.").Answer) == 0; i++ {
		if i > 100 {
			t.Fatal("a Service that was added is not answered")
		}
		time.Sleep(50 * time.Millisecond)
	}
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ok",
		"/metrics": `coredns_dns_requests_total{family="1",proto="udp",server="dns://:53",type="A",view="",zone="cluster.local."}`,
	} {
		if code, text := get(t, "http://"+web+path); code != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	start := time.Now()
	go func() { _ = stop() }()
	time.Sleep(100 * time.Millisecond)
	if code, _ := get(t, "http://"+web+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz of a server that ends: %d", code)
	}
	if r := askDNS(t, addr, "web.shop.svc.cluster.local."); len(r.Answer) != 1 {
		t.Errorf("a server that ends must still answer: %v", r)
	}
	if err := stop(); err != nil || time.Since(start) > 2*time.Second {
		t.Errorf("ended with %v after %v", err, time.Since(start))
	}
}

// TestDNS_kubeAway: without an API server there is SERVFAIL, not ready, and no
// end.
func TestDNS_kubeAway(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],
"clusters":[{"name":"c","cluster":{"server":"http://127.0.0.1:1"}}]}`
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, stop := startDNS(t, "--kubeconfig", conf, "--listen", "127.0.0.1:0", "--upstream", "none",
		"--health", "127.0.0.1:0", "--lame-duck", "10ms")
	addr := log.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	web := log.match(t, `http" addr=(\S+)`)[1]
	if r := askDNS(t, addr, "web.shop.svc.cluster.local."); r.Rcode != mdns.RcodeServerFailure {
		t.Errorf("%v", r)
	}
	if code, _ := get(t, "http://"+web+"/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if code, _ := get(t, "http://"+web+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz: %d", code)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestDNS_badFlags: each gets one line that names the flag and the value.
func TestDNS_badFlags(t *testing.T) {
	dir := t.TempDir()
	writeManifest(t, dir, "web")
	taken, _ := startDNS(t, "--manifests", dir, "--listen", "127.0.0.1:0", "--upstream", "none", "--lame-duck", "10ms")
	addr := taken.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--listen", "localhost:53"}, `--listen "localhost:53"`},
		{[]string{"--listen", addr}, "listen " + addr + ": "},
		{[]string{"--upstream", "dns.example.com"}, `--upstream "dns.example.com"`},
		{[]string{"--upstream", addr, "--listen", addr}, "--upstream " + addr + ": that is this server"},
		{[]string{"--cluster-domain", "a..b"}, "--cluster-domain"},
		{[]string{"--cluster-domain", "."}, "--cluster-domain"},
		{[]string{"--pods", "maybe"}, `--pods "maybe"`},
		{[]string{"--stub", "corp.example", "--upstream", "192.0.2.1"}, `--stub "corp.example"`},
		{[]string{"--stub", "corp.example=x", "--upstream", "192.0.2.1"}, `--stub "corp.example=x"`},
		{[]string{"--hosts", "/nowhere", "--upstream", "192.0.2.1"}, "--hosts: open /nowhere"},
		{[]string{"--corefile", "/nowhere"}, "corefile: open /nowhere"},
		{[]string{"--endpoint-names", "some"}, `--endpoint-names "some"`},
		{[]string{"--service", "dns"}, `--service "dns"`},
		{[]string{"--log-level", "loud"}, `--log-level "loud"`},
		{[]string{"--health", "nowhere:x", "--listen", "127.0.0.1:0", "--upstream", "none"}, "nowhere:x"},
		{[]string{"--kubeconfig", "x", "--manifests", "y"}, "kubeconfig manifests"},
		{[]string{"more"}, "unknown command"},
	} {
		args := c.args
		if !strings.Contains(c.want, "manifests") {
			args = append([]string{"--manifests", dir}, args...)
		}
		_, stop := startDNS(t, args...)
		err := waitEnd(stop)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want one line with %q", c.args, err, c.want)
		}
	}
}

// waitEnd gives the error of a command that must end by itself.
func waitEnd(stop func() error) error {
	time.Sleep(50 * time.Millisecond)
	return stop()
}
