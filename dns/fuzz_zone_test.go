package dns

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
)

// objectBytes makes objects of bytes: names may be anything.
type objectBytes []byte

func (b *objectBytes) next() int {
	if len(*b) == 0 {
		return 0
	}
	v := (*b)[0]
	*b = (*b)[1:]
	return int(v)
}

func (b *objectBytes) text() string {
	n := min(b.next()%80, len(*b))
	s := string((*b)[:n])
	*b = (*b)[n:]
	return s
}

func (b *objectBytes) addr() netip.Addr {
	if v := b.next(); v%2 == 0 {
		return netip.AddrFrom4([4]byte{10, 0, byte(v), byte(b.next())})
	}
	return netip.AddrFrom16([16]byte{0xfd, 15: byte(b.next())})
}

// change makes one change of a cluster of few names.
func (b *objectBytes) change(c *cluster.Builder) {
	kind := b.next()
	k := cluster.Key{Namespace: fmt.Sprint("ns", b.next()%2), Name: fmt.Sprint("svc", b.next()%3)}
	if b.next()%16 == 0 {
		k = cluster.Key{Namespace: b.text(), Name: b.text()}
	}
	switch kind % 8 {
	case 0:
		c.DeleteService(k)
	case 1:
		c.DeleteSlice(k)
	case 2:
		c.SetService(&cluster.Service{Key: k, Type: cluster.ExternalName, ExternalName: b.text()})
	case 3, 4:
		s := &cluster.Service{Key: k, Type: cluster.ClusterIP, Headless: kind%2 == 0, PublishNotReadyAddresses: b.next()%2 == 0}
		for range b.next() % 3 {
			s.Ports = append(s.Ports, cluster.ServicePort{Name: b.text(), Protocol: cluster.TCP, Port: uint16(b.next())})
		}
		if !s.Headless {
			s.ClusterIPs = []netip.Addr{b.addr()}
		}
		c.SetService(s)
	case 5:
		c.SetPod(&cluster.Pod{Key: k, IPs: []netip.Addr{b.addr()}})
	default:
		s := &cluster.EndpointSlice{Key: k, Service: k.Name, Headless: true}
		s.Ports = []cluster.EndpointPort{{Name: b.text(), Protocol: cluster.TCP, Port: 80}}
		for range b.next() % 5 {
			s.Endpoints = append(s.Endpoints, cluster.Endpoint{Address: b.addr(), Ready: b.next()%3 > 0, Hostname: b.text()})
		}
		c.SetSlice(s)
	}
}

// FuzzZone makes a cluster of bytes, change by change, and gives it a request: the
// zone that followed the changes answers as one made at once does, with a sound
// message.
func FuzzZone(f *testing.F) {
	req, _ := question("_http._tcp.svc0.ns0.svc.cluster.local.", 33).Pack()
	f.Add([]byte("\x00\x03\x00\x00\x01\x00\x02\x04http\x50\x03aaa\x07\x04\x00\x00\x01\x06\x00\x00\x01\x04http\x03\x02\x01\x01\x00\x04\x05\x01\x03abc"), req)
	req, _ = question("1.0.0.10.in-addr.arpa.", 12).Pack()
	f.Add([]byte("\x01\x04\x01\x01\x01\x01\x02\x02\x02\x02\x02\x02\x02\x02\x06\x01\x01\x01"), req)
	cfg := testConfig()
	cfg.Pods = PodsVerified
	up := NewForwarder(ForwardConfig{})
	f.Fuzz(func(t *testing.T, objects, in []byte) {
		rest, c := objectBytes(objects), cluster.NewBuilder()
		cfg.AllEndpoints = rest.next()%2 == 1
		var z *Zone
		for range 8 {
			rest.change(c)
			z = Compile(z, c.Publish(), cfg)
		}
		var got [2]string
		for i, zone := range []*Zone{z, Compile(nil, c.Publish(), cfg)} {
			s := NewServer(ServerConfig{Domain: cfg.Domain, Forwarder: up})
			s.SetZone(zone)
			w := &worker{}
			switch s.respond(w, in) {
			case silence:
				continue
			case wait:
				s.complete(context.Background(), w)
			}
			checkReply(t, in, w)
			got[i] = w.answer.withoutSerial()
		}
		if got[0] != got[1] {
			t.Errorf("followed:\n%s\nat once:\n%s", got[0], got[1])
		}
	})
}

// withoutSerial is the answer as text, less what counts changes.
func (a Answer) withoutSerial() string {
	for i := range a.Answer {
		a.Answer[i].Serial = 0
	}
	for i := range a.Authority {
		a.Authority[i].Serial = 0
	}
	return a.String()
}
