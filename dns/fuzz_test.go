package dns

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzServe gives bytes to the server as a request over UDP and over TCP. What
// comes back is silence or a sound message with the same id, no longer than the
// client takes.
func FuzzServe(f *testing.F) {
	seedRequests(f)
	s := NewServer(ServerConfig{Domain: testConfig().Domain, Forwarder: NewForwarder(ForwardConfig{})})
	s.SetZone(testZone(f, 60))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, stream := range []bool{false, true} {
			w := &worker{stream: stream}
			o := s.respond(w, in)
			if o == wait {
				s.complete(context.Background(), w)
			}
			if o != silence {
				checkReply(t, in, w)
			}
		}
	})
}

func seedRequests(f *testing.F) {
	for _, name := range []string{
		"kubernetes.default.svc.cluster.local.", "many.shop.svc.cluster.local.", "out.shop.svc.cluster.local.",
		"_x._tcp.many.shop.svc.cluster.local.", "1.0.96.10.in-addr.arpa.", "10-1-0-1.default.pod.cluster.local.",
		"cluster.local.", "example.com.", ".",
	} {
		for _, typ := range []uint16{dns.TypeA, dns.TypeSRV, dns.TypePTR, dns.TypeANY, dns.TypeSOA, dns.TypeAXFR} {
			m := question(name, typ)
			b, _ := m.Pack()
			f.Add(b)
			m.SetEdns0(4096, true)
			b, _ = m.Pack()
			f.Add(b)
		}
	}
}

func checkReply(t *testing.T, in []byte, w *worker) {
	var m dns.Msg
	if err := m.Unpack(w.out); err != nil {
		t.Fatalf("%x: %x: %v", in, w.out, err)
	}
	if len(w.out) > w.limit(1232) {
		t.Fatalf("%x: an answer of %d bytes, the client takes %d", in, len(w.out), w.limit(1232))
	}
	if !m.Response || m.Id != binary.BigEndian.Uint16(in) || !sound(w.out) {
		t.Fatalf("%x: %v", in, m)
	}
	if len(m.Question) == 1 && string(w.out[headerSize:headerSize+len(w.q.question)]) != string(w.q.question) {
		t.Fatalf("%x: another question: %x", in, w.out)
	}
}

// FuzzReply gives bytes to the forwarder as an upstream's answer: it refuses
// them, or what it would give to a client is a sound message.
func FuzzReply(f *testing.F) {
	k := cacheKey{name: mustName("www.example.com"), kind: TypeA}
	q := question("www.example.com.", dns.TypeA)
	q.Id = 1
	for _, m := range []*dns.Msg{reply1(q, "192.0.2.1", 60), new(dns.Msg).SetRcode(q, dns.RcodeNameError)} {
		b, _ := m.Pack()
		f.Add(b)
		m.SetEdns0(1232, true)
		m.Compress = true
		b, _ = m.Pack()
		f.Add(b)
	}
	client, _ := q.Pack()
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := parseReply(in, k, 1)
		if err != nil || m == nil {
			return
		}
		now := time.Unix(1e9, 0)
		st, err := store(m, now, time.Hour, time.Minute)
		if err != nil {
			return
		}
		w := &worker{}
		w.q, _, _ = parseQuery(client)
		s := NewServer(ServerConfig{})
		s.stored(w, st, now.Add(3*time.Second))
		checkReply(t, client, w)
	})
}
