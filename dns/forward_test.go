package dns

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// testUpstream is a resolver on loopback, UDP and TCP on one port.
type testUpstream struct {
	addr  netip.AddrPort
	count atomic.Int64
	tcp   atomic.Int64
}

// newUpstream answers with what answer gives; nil is silence.
func newUpstream(t testing.TB, answer func(q *dns.Msg) *dns.Msg) *testUpstream {
	t.Helper()
	u := &testUpstream{}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.count.Add(1)
		network := w.LocalAddr().Network()
		if network == "tcp" {
			u.tcp.Add(1)
		}
		m := answer(q)
		if m == nil {
			return
		}
		if network == "udp" {
			size := 512
			if o := q.IsEdns0(); o != nil {
				size = int(o.UDPSize())
			}
			m.Truncate(size)
		}
		_ = w.WriteMsg(m)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	u.addr = netip.MustParseAddrPort(l.Addr().String())
	for _, s := range []*dns.Server{{PacketConn: c, Handler: h}, {Listener: l, Handler: h}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return u
}

func (u *testUpstream) asked() int64 { return u.count.Load() }

func (u *testUpstream) forwarder(cfg ForwardConfig) *Forwarder {
	cfg.Upstreams = append(cfg.Upstreams, u.addr)
	return NewForwarder(cfg)
}

func reply1(q *dns.Msg, addr string, ttl uint32) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	rr := &dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}}
	rr.A = net.ParseIP(addr)
	m.Answer = []dns.RR{rr}
	return m
}

func forwardServer(t testing.TB, f *Forwarder) string {
	_, addr := testServer(t, testZone(t, 1), ServerConfig{Forwarder: f})
	return addr
}

func TestForward_cache(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 100) })
	f := up.forwarder(ForwardConfig{})
	addr := forwardServer(t, f)
	for _, name := range []string{"www.example.com.", "WWW.Example.com.", "www.example.COM."} {
		r := exchange(t, "udp", addr, question(name, dns.TypeA))
		if len(r.Answer) != 1 || r.Question[0].Name != name || r.Authoritative || !r.RecursionAvailable {
			t.Errorf("%s: %v", name, r)
		}
	}
	if up.asked() != 1 {
		t.Errorf("asked %d times, want 1", up.asked())
	}
	in, _ := question("www.example.com.", dns.TypeA).Pack()
	q, _, _ := parseQuery(in)
	kept, _ := f.cache.get(q.key(), time.Now())
	for passed, want := range map[time.Duration]uint32{0: 100, 1500 * time.Millisecond: 99, 99 * time.Second: 1} {
		var m dns.Msg
		b, _ := kept.appendTo(nil, &q, kept.at.Add(passed), 512, 1232)
		if err := m.Unpack(b); err != nil || m.Answer[0].Header().Ttl != want {
			t.Errorf("after %v: %v %v, want the TTL %d", passed, err, m.Answer, want)
		}
	}
	if old, _ := f.cache.get(q.key(), kept.at.Add(100*time.Second)); old != nil {
		t.Error("given although its TTL is over")
	}
	if f.cache.stale(q.key(), kept.at.Add(100*time.Second)) != kept {
		t.Error("not kept as a stale one")
	}
	_, _ = f.cache.get(q.key(), kept.at.Add(100*time.Second+time.Hour))
	if n, bytes := f.cache.size(); n != 0 || bytes != 0 {
		t.Errorf("%d entries, %d bytes left", n, bytes)
	}
}

func TestForward_negative(t *testing.T) {
	soa, _ := dns.NewRR("example.com. 60 IN SOA ns.example.com. root.example.com. 1 2 3 4 30")
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
		if !strings.HasPrefix(q.Question[0].Name, "bare.") {
			m.Ns = []dns.RR{soa}
		}
		return m
	})
	addr := forwardServer(t, up.forwarder(ForwardConfig{}))
	for range 3 {
		if r := exchange(t, "udp", addr, question("gone.example.com.", dns.TypeA)); r.Rcode != dns.RcodeNameError || len(r.Ns) != 1 {
			t.Errorf("%v", r)
		}
	}
	if up.asked() != 1 {
		t.Errorf("asked %d times, want 1", up.asked())
	}
	for range 2 { // without a SOA record it may not be kept (RFC 2308, section 5)
		exchange(t, "udp", addr, question("bare.example.com.", dns.TypeA))
	}
	if up.asked() != 3 {
		t.Errorf("asked %d times, want 3", up.asked())
	}
}

func TestForward_truncated(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		m := reply1(q, "192.0.2.1", 60)
		for i := range 300 {
			rr := *m.Answer[0].(*dns.A)
			rr.A = net.IPv4(198, 51, byte(i>>8), byte(i))
			m.Answer = append(m.Answer, &rr)
		}
		return m
	})
	addr := forwardServer(t, up.forwarder(ForwardConfig{}))
	r := exchange(t, "tcp", addr, question("big.example.com.", dns.TypeA))
	if len(r.Answer) != 301 || r.Truncated || up.tcp.Load() != 1 {
		t.Errorf("TCP: %d records, truncated %v, %d TCP questions", len(r.Answer), r.Truncated, up.tcp.Load())
	}
	r = exchange(t, "udp", addr, question("big.example.com.", dns.TypeA))
	if !r.Truncated || len(r.Answer) == 0 || len(r.Answer) > 40 {
		t.Errorf("UDP: %d records, truncated %v", len(r.Answer), r.Truncated)
	}
	if up.tcp.Load() != 1 {
		t.Error("the whole answer was not kept")
	}
}

// closedPort gives an address on which nothing answers: the kernel refuses.
func closedPort(t *testing.T) netip.AddrPort {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestForward_failover(t *testing.T) {
	silent := newUpstream(t, func(*dns.Msg) *dns.Msg { return nil })
	broken := newUpstream(t, func(q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure) })
	fine := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 60) })
	for name, first := range map[string]netip.AddrPort{
		"silent": silent.addr, "servfail": broken.addr, "closed": closedPort(t),
	} {
		f := fine.forwarder(ForwardConfig{Upstreams: []netip.AddrPort{first}, Patience: time.Second})
		addr := forwardServer(t, f)
		start := time.Now()
		r := exchange(t, "udp", addr, question("a.example.com.", dns.TypeA))
		if len(r.Answer) != 1 || time.Since(start) > 3*time.Second {
			t.Errorf("%s: %v after %v", name, r, time.Since(start))
		}
		start = time.Now() // the second question goes to the one that answers at once
		exchange(t, "udp", addr, question("b.example.com.", dns.TypeA))
		if took := time.Since(start); took > 800*time.Millisecond {
			t.Errorf("%s: the second question took %v", name, took)
		}
	}
}

// TestForward_dead: without an upstream that answers there is SERVFAIL within
// the timeout, and the cluster's names are answered as ever.
func TestForward_dead(t *testing.T) {
	silent := newUpstream(t, func(*dns.Msg) *dns.Msg { return nil })
	for name, ups := range map[string][]netip.AddrPort{
		"silent": {silent.addr}, "closed": {closedPort(t), closedPort(t)}, "none": nil,
	} {
		f := NewForwarder(ForwardConfig{Upstreams: ups, Patience: 100 * time.Millisecond, Timeout: 700 * time.Millisecond})
		addr := forwardServer(t, f)
		start := time.Now()
		r := exchange(t, "udp", addr, question("a.example.com.", dns.TypeA))
		if r.Rcode != dns.RcodeServerFailure || time.Since(start) > 3*time.Second {
			t.Errorf("%s: %v after %v", name, r.Rcode, time.Since(start))
		}
		if r := exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 {
			t.Errorf("%s: the cluster's name: %v", name, r)
		}
	}
}

// TestForward_slow: an upstream slower than our patience still answers.
func TestForward_slow(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		time.Sleep(1500 * time.Millisecond)
		return reply1(q, "192.0.2.1", 60)
	})
	addr := forwardServer(t, up.forwarder(ForwardConfig{Patience: 150 * time.Millisecond}))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			c := dns.Client{Timeout: 5 * time.Second}
			r, _, err := c.Exchange(question("slow.example.com.", dns.TypeA), addr)
			if err != nil || len(r.Answer) != 1 {
				t.Errorf("%v %v", r, err)
			}
		})
	}
	start := time.Now()
	if r := exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 || time.Since(start) > time.Second {
		t.Errorf("the cluster's name had to wait: %v", time.Since(start))
	}
	wg.Wait()
	if up.asked() > 3 {
		t.Errorf("50 equal questions asked the upstream %d times, want at most 3 attempts of one", up.asked())
	}
}

// TestForward_lies: broken answers and answers to other questions never reach a
// client.
func TestForward_lies(t *testing.T) {
	for name, lie := range map[string]func(q []byte) [][]byte{
		"counts":   func(q []byte) [][]byte { return [][]byte{patched(q, 6, 500)} },
		"cut":      func(q []byte) [][]byte { return [][]byte{patched(q, 6, 1)[:len(q)-1]} },
		"header":   func(q []byte) [][]byte { return [][]byte{patched(q, 6, 0)[:12]} },
		"other id": func(q []byte) [][]byte { r := patched(q, 6, 0); r[0]++; return [][]byte{r} },
		"other":    func(q []byte) [][]byte { r := patched(q, 6, 0); r[13] ^= 1; return [][]byte{r} },
		"empty":    func(q []byte) [][]byte { return [][]byte{{}} },
		"huge":     func(q []byte) [][]byte { return [][]byte{append(patched(q, 6, 9), make([]byte, 60000)...)} },
		"rd length": func(q []byte) [][]byte {
			return [][]byte{append(patched(q, 6, 1), 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0xff, 0xff, 1)}
		},
		"pointers": func(q []byte) [][]byte {
			return [][]byte{append(patched(q, 6, 1), 0xc0, byte(len(q)), 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 1, 2, 3, 4)}
		},
	} {
		t.Run(name, func(t *testing.T) {
			liar := rawUpstream(t, lie)
			fine := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 60) })
			f := fine.forwarder(ForwardConfig{Upstreams: []netip.AddrPort{liar}, Patience: 100 * time.Millisecond, Timeout: time.Second})
			r := exchange(t, "udp", forwardServer(t, f), question("www.example.com.", dns.TypeA))
			if len(r.Answer) != 1 {
				t.Errorf("with an honest second: %v", r)
			}
			alone := NewForwarder(ForwardConfig{Upstreams: []netip.AddrPort{liar}, Timeout: 300 * time.Millisecond})
			r = exchange(t, "udp", forwardServer(t, alone), question("www.example.com.", dns.TypeA))
			if r.Rcode != dns.RcodeServerFailure || len(r.Answer) > 0 {
				t.Errorf("alone: %v", r)
			}
		})
	}
}

// patched is the question without its OPT record as an answer, with one counter
// of its header set.
func patched(q []byte, at, n int) []byte {
	r := append([]byte(nil), q[:len(q)-optSize]...)
	r[2] |= 0x80
	r[11] = 0
	binary.BigEndian.PutUint16(r[at:], uint16(n))
	return r
}

// rawUpstream answers UDP with bytes, and TCP with a length and nothing behind.
func rawUpstream(t *testing.T, answer func(q []byte) [][]byte) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = l.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			for _, b := range answer(buf[:n]) {
				_, _ = c.WriteTo(b, from)
			}
		}
	}()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte{0xff, 0xff, 1, 2, 3})
			_ = conn.Close()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// TestForward_loop: a server that is its own upstream finds out, answers
// SERVFAIL and does not multiply questions; an upstream that is none is kept.
func TestForward_loop(t *testing.T) {
	fine := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 60) })
	self := closedPort(t)
	f := NewForwarder(ForwardConfig{Timeout: time.Second, Upstreams: []netip.AddrPort{self}})
	_, addr := testServer(t, testZone(t, 1), ServerConfig{Forwarder: f, Listen: []netip.AddrPort{self}})
	start := time.Now()
	r := exchange(t, "udp", addr, question("a.example.com.", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure || time.Since(start) > 3*time.Second {
		t.Errorf("before it is found: %v after %v", r.Rcode, time.Since(start))
	}
	if n := f.cache.misses.Load(); n > 10 {
		t.Errorf("one question became %d", n)
	}
	if !f.look(t.Context(), f.routes.Load().rest[0]) {
		t.Fatal("the loop was not found")
	}
	start = time.Now()
	r = exchange(t, "udp", addr, question("b.example.com.", dns.TypeA))
	if r.Rcode != dns.RcodeServerFailure || time.Since(start) > 800*time.Millisecond {
		t.Errorf("after it is found: %v after %v", r.Rcode, time.Since(start))
	}
	if f.look(t.Context(), &upstream{addr: fine.addr}) {
		t.Error("an upstream that does not ask us was called a loop")
	}
}

// TestForward_flood: names that nobody asked before fill neither the memory nor
// the table of goroutines, and cluster names are answered meanwhile.
func TestForward_flood(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		if strings.HasPrefix(q.Question[0].Name, "s") {
			time.Sleep(time.Second)
		}
		return reply1(q, "192.0.2.1", 600)
	})
	f := up.forwarder(ForwardConfig{CacheBytes: 1 << 20})
	s, addr := testServer(t, testZone(t, 1), ServerConfig{Forwarder: f, MaxPending: 100})
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { // read and forget, so that our own socket does not fill
		b := make([]byte, 2000)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
		}
	}()
	before := runtime.NumGoroutine()
	most := 0
	for i := range 20000 {
		prefix := "f"
		if i%10 == 0 {
			prefix = "s"
		}
		b, _ := question(fmt.Sprintf("%s%d.%s.example.com.", prefix, i, strings.Repeat("x", 60)), dns.TypeA).Pack()
		_, _ = c.Write(b)
		if i%100 == 0 {
			most = max(most, runtime.NumGoroutine())
			time.Sleep(time.Millisecond)
		}
	}
	if r := exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("the cluster's name: %v", r)
	}
	entries, bytes := f.cache.size()
	t.Logf("%d entries, %d bytes, at most %d goroutines (%d before)", entries, bytes, most, before)
	if bytes > 1<<20 || entries == 0 {
		t.Errorf("the cache has %d entries, %d bytes, want at most 1 MiB", entries, bytes)
	}
	// A waiting question has its own goroutine, that of the flight, the race's
	// attempts, and the test's own upstream has one for each attempt.
	if most > before+100*8 {
		t.Errorf("%d goroutines", most)
	}
	if len(s.pending) > 100 {
		t.Errorf("%d questions wait", len(s.pending))
	}
}

func TestResolvers(t *testing.T) {
	for text, want := range map[string]string{
		"nameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:5\n": "[192.0.2.1:53 [2001:db8::1]:53]",
		"# nothing\n":             "[]",
		"nameserver fe80::1%lo\n": "[[fe80::1%lo]:53]",
	} {
		path := t.TempDir() + "/resolv.conf"
		writeFile(t, path, text)
		got, err := Resolvers(path)
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%q: %v %v, want %s", text, got, err, want)
		}
	}
	path := t.TempDir() + "/resolv.conf"
	writeFile(t, path, "nameserver dns.example.com\n")
	if _, err := Resolvers(path); err == nil || !strings.Contains(err.Error(), "dns.example.com") {
		t.Errorf("a name as server: %v", err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
