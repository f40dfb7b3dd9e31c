package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
)

// resolver answers every A question with one address.
func resolver(t *testing.T, addr, ip string) string {
	t.Helper()
	c, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Skip("cannot listen: ", err)
	}
	s := &mdns.Server{PacketConn: c, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: 1}, A: net.ParseIP(ip)}}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return c.LocalAddr().String()
}

const dnsCorefile = `.:53 {
  errors
  health 127.0.0.1:0
  kubernetes corp.local { 
    ttl 7
  }
  hosts {
    10.9.9.9 db.example
    fallthrough
  }
  forward . ROOT
  rewrite name a b
}
stub.example { forward . STUB
}
`

func firstA(t *testing.T, m *mdns.Msg) string {
	t.Helper()
	if len(m.Answer) != 1 {
		t.Errorf("%v", m)
		return ""
	}
	return m.Answer[0].(*mdns.A).A.String()
}

// TestDNS_corefile: the settings of a Corefile count, less those given as flags,
// and what cannot be taken over is logged.
func TestDNS_corefile(t *testing.T) {
	dir := t.TempDir()
	writeManifest(t, dir, "web")
	path := filepath.Join(t.TempDir(), "Corefile")
	text := strings.NewReplacer("ROOT", resolver(t, "127.0.0.1:0", "192.0.2.1"), "STUB", resolver(t, "127.0.0.1:0", "192.0.2.2")).Replace(dnsCorefile)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log, _ := startDNS(t, "--manifests", dir, "--listen", "127.0.0.1:0", "--corefile", path, "--ttl", "11", "--lame-duck", "10ms")
	addr := log.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	log.match(t, `not taken over" line=12 text="rewrite name a b"`)
	log.match(t, "dns: synced")
	r := askDNS(t, addr, "web.shop.svc.corp.local.")
	if firstA(t, r) != "10.96.7.7" || r.Answer[0].Header().Ttl != 11 {
		t.Errorf("%v", r)
	}
	for name, want := range map[string]string{"db.example.": "10.9.9.9", "www.example.": "192.0.2.1", "x.stub.example.": "192.0.2.2"} {
		if got := firstA(t, askDNS(t, addr, name)); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestDNS_translate(t *testing.T) {
	cmd := newDNS()
	var out, errs bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetIn(strings.NewReader(strings.NewReplacer("ROOT", "192.0.2.1", "STUB", "192.0.2.2").Replace(dnsCorefile)))
	cmd.SetArgs([]string{"translate", "-"})
	if err := cmd.Execute(); err != nil {
		t.Fatal(err)
	}
	want := "--cluster-domain=corp.local\n--pods=disabled\n--endpoint-names=all\n--ttl=7\n--upstream=192.0.2.1\n--stub=stub.example=192.0.2.2\n--health=127.0.0.1:0\n# hosts: 10.9.9.9 db.example\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	if errs.String() != "line 12: rewrite name a b: there is no such thing in podlane dns\n" {
		t.Errorf("problems: %s", errs.String())
	}
}

const dnsPod = `apiVersion: v1
kind: Pod
metadata: {name: app-0, namespace: shop}
spec: {nodeName: n1, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 127.0.0.1, podIPs: [{ip: 127.0.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: n2, containers: [{name: c, image: i}]}
status: {phase: Running, podIP: 127.0.0.2, podIPs: [{ip: 127.0.0.2}]}
`

// TestDNS_queries: a pod's questions are shown while somebody looks, and those
// that its search path made are counted.
func TestDNS_queries(t *testing.T) {
	dir := t.TempDir()
	writeManifest(t, dir, "web")
	if err := os.WriteFile(filepath.Join(dir, "pods.yaml"), []byte(dnsPod), 0o600); err != nil {
		t.Fatal(err)
	}
	log, _ := startDNS(t, "--manifests", dir, "--listen", "127.0.0.1:0", "--upstream", "none", "--node", "n1",
		"--health", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--lame-duck", "10ms")
	addr := log.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	web := log.match(t, `http" addr=(\S+)`)[1]
	log.match(t, "dns: synced")
	ctx, cancel := context.WithCancel(t.Context())
	shown := &buffer{}
	done := make(chan error, 1)
	go func() {
		cmd := newDNS()
		cmd.SetOut(shown)
		cmd.SetArgs([]string{"queries", "--at", web, "--pod", "shop/app-0"})
		done <- cmd.ExecuteContext(ctx)
	}()
	time.Sleep(300 * time.Millisecond)
	for _, name := range []string{
		"www.example.com.shop.svc.cluster.local.", "www.example.com.svc.cluster.local.", "www.example.com.cluster.local.", "web.gone.svc.cluster.local.", // the search path's
		"www.example.com.", "web.shop.svc.cluster.local.", "gone.shop.svc.cluster.local.", "x.web.shop.svc.cluster.local.",
	} {
		askDNS(t, addr, name)
	}
	askFrom(t, "127.0.0.2:0", addr, "unseen.shop.svc.cluster.local.")
	shown.match(t, `shop/app-0 udp www\.example\.com\.shop\.svc\.cluster\.local\. A NXDOMAIN \d+B `)
	shown.match(t, `web\.shop\.svc\.cluster\.local\. A NOERROR`)
	shown.match(t, `x\.web\.shop`)
	if strings.Contains(shown.b.String(), "unseen") {
		t.Error("another pod's question was shown")
	}
	if _, text := get(t, "http://"+web+"/metrics"); !strings.Contains(text, `podlane_dns_search_path_questions_total{namespace="shop"} 4`) {
		t.Errorf("the search path's questions are not 4:\n%s", text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func askFrom(t *testing.T, from, addr, name string) {
	t.Helper()
	local, _ := net.ResolveUDPAddr("udp", from)
	c := &mdns.Client{Dialer: &net.Dialer{LocalAddr: local}}
	if _, _, err := c.Exchange(new(mdns.Msg).SetQuestion(name, mdns.TypeA), addr); err != nil {
		t.Fatal(err)
	}
}

// TestDNS_resolvConf: a changed resolv.conf counts, one without resolvers does not.
func TestDNS_resolvConf(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("resolv.conf has no ports: needs port 53 on loopback, so root")
	}
	resolver(t, "127.99.7.1:53", "192.0.2.1")
	resolver(t, "127.99.7.2:53", "192.0.2.2")
	dir, conf := t.TempDir(), filepath.Join(t.TempDir(), "resolv.conf")
	writeManifest(t, dir, "web")
	write := func(text string) {
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 127.99.7.1\n")
	log, _ := startDNS(t, "--manifests", dir, "--listen", "127.0.0.1:0", "--resolv-conf", conf, "--lame-duck", "10ms")
	addr := log.match(t, `listening" addr=\[(127[^\]]+)\]`)[1]
	if got := firstA(t, askDNS(t, addr, "a.example.")); got != "192.0.2.1" {
		t.Errorf("got %s", got)
	}
	write("nameserver 127.99.7.2\n")
	log.match(t, "resolvers changed")
	if got := firstA(t, askDNS(t, addr, "b.example.")); got != "192.0.2.2" {
		t.Errorf("after the change: %s", got)
	}
	write("# nobody\n")
	log.match(t, "the old ones stay")
	if got := firstA(t, askDNS(t, addr, "c.example.")); got != "192.0.2.2" {
		t.Errorf("after a broken change: %s", got)
	}
}
