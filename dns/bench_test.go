package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// BenchmarkRespond is a request to an answer, without sockets, at 10,000
// Services.
func BenchmarkRespond(b *testing.B) {
	f := NewForwarder(ForwardConfig{})
	m := reply1(question("www.example.com.", dns.TypeA), "192.0.2.1", 3600)
	kept, err := store(m, time.Now(), time.Hour, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	f.cache.put(cacheKey{name: mustName("www.example.com"), kind: TypeA}, kept)
	s := NewServer(ServerConfig{Domain: testConfig().Domain, Forwarder: f})
	s.SetZone(Compile(nil, manyServices(10000).Publish(), testConfig()))
	for _, c := range []struct {
		what, name string
		typ        uint16
	}{
		{"clusterIP", "service-4321.ns-21.svc.cluster.local.", dns.TypeA},
		{"headless", "service-4329.ns-29.svc.cluster.local.", dns.TypeA},
		{"SRV", "_http._tcp.service-4329.ns-29.svc.cluster.local.", dns.TypeSRV},
		{"NXDOMAIN", "www.example.com.ns-21.svc.cluster.local.", dns.TypeA},
		{"PTR", "225.16.96.10.in-addr.arpa.", dns.TypePTR},
		{"cached", "www.example.com.", dns.TypeA},
	} {
		b.Run(c.what, func(b *testing.B) {
			in, _ := question(c.name, c.typ).Pack()
			w := &worker{}
			b.ReportAllocs()
			for b.Loop() {
				if s.respond(w, in) != send {
					b.Fatal("no answer")
				}
			}
		})
	}
}

// BenchmarkUDP is a request and its answer over loopback, from as many clients
// as there are cores.
func BenchmarkUDP(b *testing.B) {
	_, addr := testServer(b, Compile(nil, manyServices(10000).Publish(), testConfig()), ServerConfig{})
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("udp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		in, _ := question("service-4321.ns-21.svc.cluster.local.", dns.TypeA).Pack()
		buf := make([]byte, 1232)
		for pb.Next() {
			_, _ = c.Write(in)
			if _, err := c.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// TestServer_dnsperf loads the server with dnsperf for a moment. Every question
// must be answered, and rightly; the figure is only reported.
func TestServer_dnsperf(t *testing.T) {
	if _, err := exec.LookPath("dnsperf"); err != nil {
		t.Skip("needs dnsperf: ", err)
	}
	_, addr := testServer(t, Compile(nil, manyServices(10000).Publish(), testConfig()), ServerConfig{})
	var q strings.Builder
	for i := range 10000 {
		if i%10 != 9 {
			fmt.Fprintf(&q, "service-%d.ns-%d.svc.cluster.local A\n", i, i%100)
		}
	}
	file := filepath.Join(t.TempDir(), "questions")
	if err := os.WriteFile(file, []byte(q.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	a := netip.MustParseAddrPort(addr)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "dnsperf", "-s", a.Addr().String(), "-p", fmt.Sprint(a.Port()),
		"-d", file, "-l", "2", "-c", "8", "-T", "2", "-q", "64").CombinedOutput()
	if err != nil {
		t.Fatalf("dnsperf: %v\n%s", err, out)
	}
	lost := regexp.MustCompile(`Queries lost:\s+(\d+)`).FindSubmatch(out)
	codes := regexp.MustCompile(`Response codes:\s+(.*)`).FindSubmatch(out)
	qps := regexp.MustCompile(`Queries per second:\s+(.*)`).FindSubmatch(out)
	if lost == nil || codes == nil || qps == nil {
		t.Fatalf("dnsperf said:\n%s", out)
	}
	t.Logf("%s questions/s, lost %s, %s", qps[1], lost[1], codes[1])
	if string(lost[1]) != "0" || !strings.HasSuffix(string(codes[1]), "(100.00%)") || !strings.HasPrefix(string(codes[1]), "NOERROR") {
		t.Errorf("dnsperf said:\n%s", out)
	}
}

// TestZone_memory: beside the Snapshot, a zone of 10,000 Services is small.
func TestZone_memory(t *testing.T) {
	snap := manyServices(10000).Publish()
	before := heap()
	z := Compile(nil, snap, testConfig())
	used := heap() - before
	t.Logf("%d KiB beside the Snapshot", used>>10)
	if used > 8<<20 {
		t.Errorf("%d KiB, want at most 8 MiB", used>>10)
	}
	runtime.KeepAlive(z)
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
