package dns

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestForward_stubs: the longest zone says who is asked.
func TestForward_stubs(t *testing.T) {
	named := func(addr string) *testUpstream {
		return newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, addr, 60) })
	}
	rest, corp, eu := named("192.0.2.1"), named("192.0.2.2"), named("192.0.2.3")
	f := rest.forwarder(ForwardConfig{Stubs: []Stub{
		{mustName("corp.example"), []netip.AddrPort{corp.addr}},
		{mustName("eu.corp.example"), []netip.AddrPort{eu.addr}},
	}})
	addr := forwardServer(t, f)
	for name, want := range map[string]string{
		"www.example.com.": "192.0.2.1", "xcorp.example.": "192.0.2.1", "example.": "192.0.2.1",
		"corp.example.": "192.0.2.2", "A.b.Corp.example.": "192.0.2.2", "xeu.corp.example.": "192.0.2.2",
		"eu.corp.example.": "192.0.2.3", "www.EU.corp.example.": "192.0.2.3",
	} {
		r := exchange(t, "udp", addr, question(name, dns.TypeA))
		if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s: %v, want %s", name, r.Answer, want)
		}
	}
}

// TestForward_hosts: what is in the entries is answered without asking anybody.
func TestForward_hosts(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 60) })
	h, err := ParseHosts("# by hand\n10.9.8.7 db.example DB2.example # two\n\nfd00::7 db.example\n10.9.8.8 db.example\n")
	if err != nil {
		t.Fatal(err)
	}
	addr := forwardServer(t, up.forwarder(ForwardConfig{Hosts: h}))
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"DB.example.", dns.TypeA, "10.9.8.7 10.9.8.8"}, {"db2.example.", dns.TypeA, "10.9.8.7"}, {"db.example.", dns.TypeAAAA, "fd00::7"},
		{"db.example.", dns.TypeMX, ""}, {"7.8.9.10.in-addr.arpa.", dns.TypePTR, "db.example. db2.example."},
	} {
		var got []string
		r := exchange(t, "udp", addr, question(c.name, c.typ))
		for _, rr := range r.Answer {
			f := strings.Fields(rr.String())
			got = append(got, f[len(f)-1])
		}
		if strings.Join(got, " ") != c.want || r.Rcode != dns.RcodeSuccess {
			t.Errorf("%s %d: %v", c.name, c.typ, r)
		}
	}
	if up.asked() != 0 {
		t.Errorf("the upstream was asked %d times", up.asked())
	}
	if exchange(t, "udp", addr, question("x.db.example.", dns.TypeA)); up.asked() != 1 {
		t.Error("a name that is not in the entries was not asked for")
	}
	for _, bad := range []string{"10.0.0.1", "nothing db", "10.0.0.1 a..b"} {
		if _, err := ParseHosts("# x\n" + bad); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestForward_stale: without an upstream, answers are given past their end, at
// once from the second time; with it, they are new.
func TestForward_stale(t *testing.T) {
	var away, broken atomic.Bool
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		switch {
		case broken.Load():
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		case away.Load():
			return nil
		}
		return reply1(q, "192.0.2.1", 1)
	})
	f := up.forwarder(ForwardConfig{})
	addr := forwardServer(t, f)
	ask := func(name string) (*dns.Msg, time.Duration) {
		start := time.Now()
		return exchange(t, "udp", addr, question(name, dns.TypeA)), time.Since(start)
	}
	ask("a.example.")
	ask("b.example.")
	time.Sleep(1100 * time.Millisecond)
	away.Store(true)
	if r, took := ask("a.example."); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != staleTTL || took > 3*time.Second {
		t.Errorf("silent upstream: %v after %v", r, took)
	}
	if r, took := ask("a.example."); len(r.Answer) != 1 || took > 500*time.Millisecond {
		t.Errorf("the second time: %v after %v", r, took)
	}
	broken.Store(true)
	if r, _ := ask("b.example."); len(r.Answer) != 1 {
		t.Errorf("upstream with SERVFAIL: %v", r)
	}
	if r, _ := ask("never.example."); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("a name that was never known: %v", r)
	}
	if n := f.counts.stale.Load(); n != 2 {
		t.Errorf("%d stale answers counted", n)
	}
	broken.Store(false)
	away.Store(false)
	f.cache.postpone(cacheKey{name: mustName("b.example"), kind: TypeA}, time.Now().Add(-time.Minute))
	if r, _ := ask("b.example."); len(r.Answer) != 1 || r.Answer[0].Header().Ttl != 1 {
		t.Errorf("when it is back: %v", r)
	}
}

// TestForward_prefetch: an answer that is asked for often is asked for again
// before its end, once.
func TestForward_prefetch(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 2) })
	f := up.forwarder(ForwardConfig{})
	addr := forwardServer(t, f)
	start := time.Now()
	for time.Since(start) < 1950*time.Millisecond {
		exchange(t, "udp", addr, question("a.example.", dns.TypeA))
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	if n := up.asked(); n != 2 {
		t.Errorf("asked %d times, want 2", n)
	}
	misses := f.cache.misses.Load()
	exchange(t, "udp", addr, question("a.example.", dns.TypeA))
	if f.cache.misses.Load() != misses {
		t.Error("past the first answer's end, a client had to wait")
	}
}

// TestForward_health: one that is away is asked by us and not by clients, and used
// soon after it is back.
func TestForward_health(t *testing.T) {
	var away atomic.Bool
	first := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		if away.Load() {
			return nil
		}
		return reply1(q, "192.0.2.1", 0)
	})
	second := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.2", 0) })
	f := NewForwarder(ForwardConfig{Upstreams: []netip.AddrPort{first.addr, second.addr}, Patience: 300 * time.Millisecond})
	go func() { _ = f.Run(t.Context()) }()
	addr := forwardServer(t, f)
	ask := func() (string, time.Duration) {
		start := time.Now()
		r := exchange(t, "udp", addr, question("a.example.", dns.TypeA))
		if len(r.Answer) != 1 {
			t.Fatalf("%v", r)
		}
		return r.Answer[0].(*dns.A).A.String(), time.Since(start)
	}
	away.Store(true)
	if who, _ := ask(); who != "192.0.2.2" {
		t.Errorf("%s answered", who)
	}
	time.Sleep(shunned + time.Second) // longer than one failure counts
	if who, took := ask(); who != "192.0.2.2" || took > 250*time.Millisecond {
		t.Errorf("a client found out again: %s after %v", who, took)
	}
	away.Store(false)
	for end := time.Now().Add(3 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if who, _ := ask(); who == "192.0.2.1" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is back and not used")
		}
	}
}

// TestForward_setUpstreams: new ones are asked at once, and those that stay keep
// what is known of them.
func TestForward_setUpstreams(t *testing.T) {
	one := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 0) })
	two := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.2", 0) })
	f := one.forwarder(ForwardConfig{})
	addr := forwardServer(t, f)
	known := f.routes.Load().rest[0]
	f.SetUpstreams([]netip.AddrPort{two.addr, one.addr})
	if f.routes.Load().rest[1] != known {
		t.Error("an upstream that stayed was forgotten")
	}
	r := exchange(t, "udp", addr, question("a.example.", dns.TypeA))
	if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "192.0.2.2" {
		t.Errorf("%v", r)
	}
}
