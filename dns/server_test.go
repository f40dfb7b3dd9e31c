package dns

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/podlane/podlane/cluster"
)

const testObjects = `
namespace default
service default/kubernetes 10.96.0.1 fd00:96::1 https=443/TCP
service kube-system/kube-dns 10.96.0.10 dns=53/UDP
external shop/out www.example.com
headless shop/many
`

// testServer serves z (nil: not synced) on loopback until the test ends.
func testServer(t testing.TB, z *Zone, cfg ServerConfig) (*Server, string) {
	t.Helper()
	if cfg.Listen == nil {
		cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	cfg.Domain = testConfig().Domain
	if cfg.LameDuck == 0 {
		cfg.LameDuck = time.Millisecond
	}
	s := NewServer(cfg)
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	if z != nil {
		s.SetZone(z)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s, s.Addrs()[0].String()
}

// testZone has also a headless Service with n endpoints.
func testZone(t testing.TB, n int) *Zone {
	b := buildObjects(t, testObjects)
	s := &cluster.EndpointSlice{
		Key: cluster.Key{Namespace: "shop", Name: "many-1"}, Service: "many", Headless: true,
		Ports: []cluster.EndpointPort{{Name: "x", Protocol: cluster.TCP, Port: 80}},
	}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
		s.Endpoints = append(s.Endpoints, cluster.Endpoint{Address: a, Ready: true})
	}
	b.SetSlice(s)
	return Compile(nil, b.Publish(), testConfig())
}

func exchange(t *testing.T, network, addr string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 8 * time.Second}
	r, _, err := c.Exchange(m, addr)
	if err != nil {
		t.Fatalf("%v: %v", m.Question, err)
	}
	return r
}

func question(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	return m
}

func TestServer_families(t *testing.T) {
	z := testZone(t, 3)
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"} {
		a := netip.MustParseAddrPort(listen)
		if a.Addr().Is6() && !hasIPv6() {
			t.Logf("skipped %s: no IPv6 loopback", listen)
			continue
		}
		s, _ := testServer(t, z, ServerConfig{Listen: []netip.AddrPort{a}})
		host := "127.0.0.2" // of the wildcard: not the address a route would choose
		if a.Addr().Is6() {
			host = "::1"
		} else if !a.Addr().IsUnspecified() {
			host = "127.0.0.1"
		}
		addr := net.JoinHostPort(host, fmt.Sprint(s.Addrs()[0].Port()))
		for _, network := range []string{"udp", "tcp"} {
			r := exchange(t, network, addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA))
			if len(r.Answer) != 1 || r.Answer[0].(*dns.A).A.String() != "10.96.0.1" || !r.Authoritative {
				t.Errorf("%s %s: %v", listen, network, r)
			}
		}
	}
}

func hasIPv6() bool {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		return false
	}
	_ = l.Close()
	return true
}

func TestServer_inUse(t *testing.T) {
	s, addr := testServer(t, nil, ServerConfig{})
	_ = s
	second := NewServer(ServerConfig{Listen: []netip.AddrPort{netip.MustParseAddrPort(addr)}})
	err := second.Listen()
	if err == nil || !strings.Contains(err.Error(), "listen "+addr) {
		t.Fatalf("second server on %s: %v, want an error that names it", addr, err)
	}
}

func TestServer_case(t *testing.T) {
	_, addr := testServer(t, testZone(t, 1), ServerConfig{})
	name := "kUbErNeTeS.DeFaUlT.svc.CLUSTER.local."
	r := exchange(t, "udp", addr, question(name, dns.TypeA))
	if r.Question[0].Name != name || len(r.Answer) != 1 || r.Answer[0].Header().Name != name {
		t.Errorf("the case of the question is not kept: %v", r)
	}
}

func TestServer_truncation(t *testing.T) {
	_, addr := testServer(t, testZone(t, 200), ServerConfig{})
	q := question("many.shop.svc.cluster.local.", dns.TypeA)
	for _, c := range []struct{ edns, most, records int }{
		{0, 512, 29}, {100, 512, 28}, {512, 512, 28}, {1232, 1232, 73}, {65535, 1232, 73},
	} {
		q.Extra = nil
		if c.edns > 0 {
			q.SetEdns0(uint16(c.edns), false)
		}
		r, size := exchangeSize(t, addr, q)
		if !r.Truncated || size > c.most || size < c.most-16 {
			t.Errorf("EDNS %d: truncated %v, %d bytes, want just at most %d", c.edns, r.Truncated, size, c.most)
		}
		if len(r.Answer) != c.records || (r.IsEdns0() != nil) != (c.edns > 0) {
			t.Errorf("EDNS %d: %d records, want %d; OPT %v", c.edns, len(r.Answer), c.records, r.IsEdns0())
		}
	}
	if r := exchange(t, "tcp", addr, q); r.Truncated || len(r.Answer) != 200 {
		t.Errorf("TCP: %d records, truncated %v", len(r.Answer), r.Truncated)
	}
	// Additional records alone do not make an answer short.
	srv := exchange(t, "udp", addr, question("_x._tcp.many.shop.svc.cluster.local.", dns.TypeSRV))
	if !srv.Truncated || len(srv.Answer) == 0 || len(srv.Extra) != 0 {
		t.Errorf("SRV: truncated %v, %d answers, %d additional", srv.Truncated, len(srv.Answer), len(srv.Extra))
	}
}

// exchangeSize gives also the length of the answer.
func exchangeSize(t *testing.T, addr string, q *dns.Msg) (*dns.Msg, int) {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, _ := q.Pack()
	_, _ = c.Write(out)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 65535)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(b[:n]); err != nil {
		t.Fatal(err)
	}
	return m, n
}

func TestServer_additionalDropped(t *testing.T) {
	_, addr := testServer(t, testZone(t, 6), ServerConfig{})
	r := exchange(t, "udp", addr, question("_x._tcp.many.shop.svc.cluster.local.", dns.TypeSRV))
	if r.Truncated || len(r.Answer) != 6 || len(r.Extra) >= 6 || len(r.Extra) == 0 {
		t.Errorf("truncated %v, %d answers, %d additional: want 6 answers, few additional, no TC",
			r.Truncated, len(r.Answer), len(r.Extra))
	}
}

// TestServer_headers has requests as bytes and the codes of their answers; -1 is
// silence.
func TestServer_headers(t *testing.T) {
	s := NewServer(ServerConfig{Domain: testConfig().Domain})
	s.SetZone(testZone(t, 1))
	name := hex.EncodeToString([]byte("\x02ns\x03dns\x07cluster\x05local\x00"))
	q := name + "00010001"
	opt := "0000290200" // root, type OPT, size 512
	for _, c := range []struct {
		what, in string
		code     int
	}{
		{"plain", "abcd0100 0001000000000000" + q, 0},
		{"too short for a header", "abcd0100000100", -1},
		{"empty", "", -1},
		{"an answer", "abcd8100 0001000000000000" + q, -1},
		{"NOTIFY", "abcd2000 0001000000000000" + q, int(NotImp)},
		{"UPDATE", "abcd2800 0001000000000000" + q, int(NotImp)},
		{"no question", "abcd0100 0000000000000000", int(FormErr)},
		{"two questions", "abcd0100 0002000000000000" + q + q, int(FormErr)},
		{"name cut off", "abcd0100 0001000000000000" + "02", int(FormErr)},
		{"class cut off", "abcd0100 0001000000000000" + name + "000100", int(FormErr)},
		{"pointer in the question", "abcd0100 0001000000000000" + "c00c00010001", int(FormErr)},
		{"label of 64", "abcd0100 0001000000000000" + "40" + strings.Repeat("61", 64) + "0000010001", int(FormErr)},
		{"name of 256", "abcd0100 0001000000000000" + strings.Repeat("3f"+strings.Repeat("61", 63), 4) + "0000010001", int(FormErr)},
		{"bytes behind the message", "abcd0100 0001000000000000" + q + "00", int(FormErr)},
		{"class CHAOS", "abcd0100 0001000000000000" + name + "00010003", int(Refused)},
		{"class ANY", "abcd0100 0001000000000000" + name + "000100ff", int(Refused)},
		{"AXFR", "abcd0100 0001000000000000" + name + "00fc0001", int(Refused)},
		{"question of type OPT", "abcd0100 0001000000000000" + name + "00290001", int(FormErr)},
		{"EDNS", "abcd0100 0001000000000001" + q + opt + "000000000000", 0},
		{"EDNS with an option", "abcd0100 0001000000000001" + q + opt + "00000000000c 000a 0008 0102030405060708", 0},
		{"EDNS version 1", "abcd0100 0001000000000001" + q + opt + "000100000000", int(BadVers)},
		{"two OPT records", "abcd0100 0001000000000002" + q + opt + "000000000000" + opt + "000000000000", int(FormErr)},
		{"OPT in the answer section", "abcd0100 0001000100000000" + q + opt + "000000000000", int(FormErr)},
		{"OPT not of the root", "abcd0100 0001000000000001" + q + "0161" + opt + "000000000000", int(FormErr)},
		{"OPT cut off", "abcd0100 0001000000000001" + q + opt + "0000", int(FormErr)},
		{"OPT with a length that lies", "abcd0100 0001000000000001" + q + opt + "00000000ffff", int(FormErr)},
		{"more records than there are", "abcd0100 0001000000000005" + q + opt + "000000000000", int(FormErr)},
		{"a record besides", "abcd0100 0001000000000001" + q + "00 0010 0001 00000000 0002 0161", 0},
		{"outside, no forwarder", "abcd0100 0001000000000000" + "036e657400" + "00010001", int(Refused)},
	} {
		in, err := hex.DecodeString(strings.ReplaceAll(c.in, " ", ""))
		if err != nil {
			t.Fatal(c.what, err)
		}
		w := &worker{}
		if o := s.respond(w, in); o == silence {
			if c.code != -1 {
				t.Errorf("%s: silence, want %s", c.what, Code(c.code))
			}
			continue
		}
		var m dns.Msg
		if err := m.Unpack(w.out); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if m.Rcode != c.code || m.Id != 0xabcd || !m.Response {
			t.Errorf("%s: %s, want %s", c.what, Code(m.Rcode), Code(c.code))
		}
	}
}

func TestServer_unsynced(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.1", 60) })
	s, addr := testServer(t, nil, ServerConfig{Forwarder: up.forwarder(ForwardConfig{})})
	if s.Ready() {
		t.Error("ready without a zone")
	}
	for _, name := range []string{"kubernetes.default.svc.cluster.local.", "cluster.local.", "1.0.96.10.in-addr.arpa."} {
		if r := exchange(t, "udp", addr, question(name, dns.TypeA)); r.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s before the zone is there: %v", name, r)
		}
	}
	if r := exchange(t, "udp", addr, question("example.com.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("outside before the zone is there: %v", r)
	}
	s.SetZone(testZone(t, 1))
	if r := exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 || !s.Ready() {
		t.Errorf("after: ready %v, %v", s.Ready(), r)
	}
}

func TestServer_externalName(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg { return reply1(q, "192.0.2.7", 60) })
	_, addr := testServer(t, testZone(t, 1), ServerConfig{Forwarder: up.forwarder(ForwardConfig{})})
	for _, network := range []string{"udp", "tcp"} {
		r := exchange(t, network, addr, question("out.shop.svc.cluster.local.", dns.TypeA))
		if len(r.Answer) != 2 || r.Answer[0].(*dns.CNAME).Target != "www.example.com." ||
			r.Answer[1].(*dns.A).A.String() != "192.0.2.7" || r.Answer[1].Header().Name != "www.example.com." {
			t.Errorf("%s: %v", network, r)
		}
	}
	if n := up.asked(); n != 1 {
		t.Errorf("the upstream was asked %d times, want 1", n)
	}
}

func TestServer_drain(t *testing.T) {
	up := newUpstream(t, func(q *dns.Msg) *dns.Msg {
		time.Sleep(800 * time.Millisecond)
		return reply1(q, "192.0.2.1", 60)
	})
	s := NewServer(ServerConfig{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Domain: testConfig().Domain,
		Forwarder: up.forwarder(ForwardConfig{}), LameDuck: 600 * time.Millisecond,
	})
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	s.SetZone(testZone(t, 1))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	addr := s.Addrs()[0].String()
	idle, err := net.Dial("tcp", addr) // must not hold the end up
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	time.Sleep(50 * time.Millisecond)
	if s.Ready() {
		t.Error("ready while it ends")
	}
	if r := exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("a lame duck must answer: %v", r)
	}
	start := time.Now()
	if r := exchange(t, "udp", addr, question("slow.example.com.", dns.TypeA)); len(r.Answer) != 1 {
		t.Errorf("a question under way must be answered: %v", r)
	}
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		t.Fatal("not ended within 2 s")
	}
	t.Logf("ended %v after the last question", time.Since(start))
}

// TestServer_panic: a bug in answering one request does not end the server.
func TestServer_panic(t *testing.T) {
	s := NewServer(ServerConfig{Domain: testConfig().Domain})
	s.SetZone(&Zone{cfg: testConfig()}) // without a Snapshot: looking into it panics
	w := &worker{}
	in, _ := question("a.b.svc.cluster.local.", dns.TypeA).Pack()
	if o := s.respondGuarded(w, in); o != send || Code(w.out[3]&maskCode) != ServFail {
		t.Fatalf("outcome %v, message %x", o, w.out)
	}
	if s.stats.panics.Load() != 1 {
		t.Error("not counted")
	}
}

func TestServer_tcpMany(t *testing.T) {
	_, addr := testServer(t, testZone(t, 1), ServerConfig{})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := &dns.Conn{Conn: c}
	for i := range 5 { // all sent before the first answer is read
		m := question("kubernetes.default.svc.cluster.local.", dns.TypeA)
		m.Id = uint16(i)
		if err := conn.WriteMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		r, err := conn.ReadMsg()
		if err != nil || r.Id != uint16(i) {
			t.Fatalf("answer %d: %v %v", i, r, err)
		}
	}
	var long [2]byte
	binary.BigEndian.PutUint16(long[:], 60000)
	if _, err := c.Write(long[:]); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(long[:]); err == nil {
		t.Errorf("%d bytes after a request of 60000 bytes was announced, want the end", n)
	}
}

func TestServer_metrics(t *testing.T) {
	s, addr := testServer(t, testZone(t, 1), ServerConfig{})
	exchange(t, "udp", addr, question("kubernetes.default.svc.cluster.local.", dns.TypeA))
	exchange(t, "tcp", addr, question("missing.default.svc.cluster.local.", dns.TypeSRV))
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(s.Collector())
	got, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range got {
		for _, m := range f.Metric {
			fmt.Fprintln(&text, f.GetName(), m)
		}
	}
	for _, want := range []string{
		`coredns_dns_requests_total label:{name:"family"value:"1"}label:{name:"proto"value:"udp"}label:{name:"server"value:"dns://:53"}label:{name:"type"value:"A"}label:{name:"view"value:""}label:{name:"zone"value:"cluster.local."}counter:{value:1}`,
		`label:{name:"proto"value:"tcp"}label:{name:"server"value:"dns://:53"}label:{name:"type"value:"SRV"}`,
		`label:{name:"rcode"value:"NXDOMAIN"}`,
		`coredns_dns_request_duration_seconds`,
	} {
		if !strings.Contains(strings.ReplaceAll(text.String(), " ", ""), strings.ReplaceAll(want, " ", "")) {
			t.Errorf("no %s in\n%s", want, text.String())
		}
	}
}

// dig asks with the real program.
func dig(t *testing.T, addr string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("dig"); err != nil {
		t.Skip("needs dig: ", err)
	}
	host, port, _ := net.SplitHostPort(addr)
	args = append([]string{"@" + host, "-p", port, "+time=3", "+tries=1"}, args...)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "dig", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %v: %v\n%s", args, err, out)
	}
	return strings.Replace(string(out), "WARNING: .local is reserved", "", 1)
}

func TestServer_dig(t *testing.T) {
	_, addr := testServer(t, testZone(t, 200), ServerConfig{})
	for _, c := range []struct {
		args string
		want []string
		not  []string
	}{
		{"kubernetes.default.svc.cluster.local A", []string{"NOERROR", "10.96.0.1", "qr aa rd ra", "EDNS: version: 0", "udp: 1232"}, []string{"WARNING", "Warning"}},
		{"+noedns kubernetes.default.svc.cluster.local AAAA", []string{"fd00:96::1"}, []string{"EDNS", "WARNING"}},
		{"+tcp many.shop.svc.cluster.local A", []string{"ANSWER: 200", "(TCP)"}, []string{"WARNING"}},
		{"+bufsize=512 +ignore many.shop.svc.cluster.local A", []string{"ANSWER: 28", "flags: qr aa tc"}, nil},
		{"+noedns many.shop.svc.cluster.local A", []string{"Truncated, retrying in TCP mode", "ANSWER: 200"}, nil},
		{"-x 10.96.0.1", []string{"kubernetes.default.svc.cluster.local."}, nil},
		{"-x fd00:96::1", []string{"kubernetes.default.svc.cluster.local."}, nil},
		{"_https._tcp.kubernetes.default.svc.cluster.local SRV", []string{"0 100 443 kubernetes", "ADDITIONAL: 3"}, nil},
		{"dns-version.cluster.local TXT", []string{`"1.1.0"`}, nil},
		{"nothing.default.svc.cluster.local", []string{"NXDOMAIN", "SOA"}, nil},
		{"default.svc.cluster.local", []string{"NOERROR", "ANSWER: 0", "AUTHORITY: 1"}, nil},
		{"+noednsneg +edns=1 cluster.local SOA", []string{"BADVERS"}, nil},
		{"+opcode=notify cluster.local SOA", []string{"NOTIMP"}, nil},
		{"-c CH version.bind TXT", []string{"REFUSED"}, nil},
		{"+dnssec cluster.local SOA", []string{"flags: do", "ns.dns.cluster.local. hostmaster.cluster.local."}, nil},
	} {
		out := dig(t, addr, strings.Fields(c.args)...)
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("dig %s: no %q in\n%s", c.args, w, out)
			}
		}
		for _, w := range c.not {
			if strings.Contains(out, w) {
				t.Errorf("dig %s: %q in\n%s", c.args, w, out)
			}
		}
	}
	if out := dig(t, addr, "cluster.local", "AXFR"); !strings.Contains(out, "Transfer failed") {
		t.Errorf("AXFR: %s", out)
	}
}
