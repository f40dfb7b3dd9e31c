package dns

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
)

// svc has the names below svc.<zone>:
//
//	               ns.svc   nothing, but it exists
//	           web.ns.svc   a Service
//	      web-0.web.ns.svc   an endpoint of a headless Service
//	      _tcp.web.ns.svc   nothing, but it exists where the next one does
//	_http._tcp.web.ns.svc   a named port
func (r *reply) svc(p path) (exists bool, target Name) {
	if p.n == 1 {
		return true, ""
	}
	if p.n == 2 {
		return r.z.namespace(p.labels[1]), ""
	}
	s := r.z.snapshot.Services.Get(serviceKey(p))
	if s == nil {
		return false, ""
	}
	if s.Type == cluster.ExternalName {
		return r.external(s, p)
	}
	b := r.backend(s)
	if s.Headless && b.headless == nil {
		return false, ""
	}
	switch p.n {
	case 3:
		return r.service(b), ""
	case 4:
		return r.endpoint(b, p.labels[3]), ""
	}
	return r.port(b, p.labels[4], p.labels[3]), ""
}

// serviceKey is that of the Service that a path of three labels or more names.
func serviceKey(p path) cluster.Key { return cluster.Key{Namespace: p.labels[1], Name: p.labels[2]} }

// external has the CNAME of a Service of type ExternalName.
func (r *reply) external(s *cluster.Service, p path) (exists bool, target Name) {
	if p.n != 3 {
		return false, ""
	}
	target, err := ParseName(s.ExternalName)
	if err != nil || target == Root {
		return true, "" // the source reports the name; here it has no record
	}
	r.a.Answer = append(r.a.Answer, Record{Name: r.owner, Type: TypeCNAME, TTL: r.z.cfg.TTL, Target: target})
	if r.q.Type == TypeANY {
		return true, ""
	}
	return true, target
}

// backend is a Service as far as a question needs it.
type backend struct {
	*cluster.Service
	name     Name
	headless *headless // its endpoints, where they have names
}

func (r *reply) backend(s *cluster.Service) backend {
	return backend{s, r.z.serviceName(s.Key), r.z.headless.Get(s.Key)}
}

// service has the records of the Service's own name.
func (r *reply) service(b backend) bool {
	if r.q.Type == TypeSRV {
		r.srv(b, "", anyPort)
		return true
	}
	addrs := b.ClusterIPs
	if b.Headless {
		addrs = b.headless.addrs
	}
	for _, a := range addrs {
		r.addr(a)
	}
	r.turn()
	return true
}

// endpoint has the records of an endpoint's name, and says whether _tcp and its
// like have names below them.
func (r *reply) endpoint(b backend, label string) bool {
	if proto, ok := protocol(label); ok {
		return b.any(func(p servicePort) bool { return p.protocol == proto && p.name != "" })
	}
	if b.headless == nil {
		return false
	}
	if r.q.Type == TypeSRV {
		r.srv(b, label, anyPort)
	}
	eps := b.headless.named(label)
	for i, e := range eps {
		if i == 0 || eps[i-1].addr != e.addr {
			r.addr(e.addr)
		}
	}
	r.turn()
	return len(eps) > 0
}

// port has the SRV records of a named port.
func (r *reply) port(b backend, name, proto string) bool {
	want, ok := protocol(proto)
	if !ok || len(name) < 2 || name[0] != '_' {
		return false
	}
	match := func(p servicePort) bool { return p.protocol == want && strings.EqualFold(p.name, name[1:]) }
	if !b.any(match) {
		return false
	}
	if r.q.Type == TypeSRV {
		r.srv(b, "", match)
	}
	return true
}

func protocol(label string) (cluster.Protocol, bool) {
	switch label {
	case "_tcp":
		return cluster.TCP, true
	case "_udp":
		return cluster.UDP, true
	case "_sctp":
		return cluster.SCTP, true
	}
	return 0, false
}

// servicePort is a port of a Service or of its endpoints.
type servicePort struct {
	name     string
	protocol cluster.Protocol
	port     uint16
}

func anyPort(servicePort) bool { return true }

// any says whether some port matches.
func (b backend) any(match func(servicePort) bool) bool {
	if !b.Headless {
		return slices.ContainsFunc(b.Ports, func(p cluster.ServicePort) bool {
			return match(servicePort{p.Name, p.Protocol, p.Port})
		})
	}
	return slices.ContainsFunc(b.headless.endpoints, func(e endpoint) bool {
		return slices.ContainsFunc(e.ports, func(p cluster.EndpointPort) bool {
			return match(servicePort{p.Name, p.Protocol, p.Port})
		})
	})
}

// srv adds the SRV records of the ports that match, of one endpoint where host
// is set, and the addresses of their targets. A Service's own name and an
// endpoint's have them too, for all ports: the specification does not ask for
// it, CoreDNS does it and people use it.
func (r *reply) srv(b backend, host string, match func(servicePort) bool) {
	if b.Headless || host != "" {
		r.srvHeadless(b, host, match)
	} else {
		r.srvClusterIP(b, match)
	}
	n := len(r.a.Answer) - r.before
	for i := range n {
		r.a.Answer[r.before+i].SRV.Weight = uint16(max(1, 100/n))
	}
	r.turn()
}

func (r *reply) srvClusterIP(b backend, match func(servicePort) bool) {
	for _, p := range b.Ports {
		if match(servicePort{p.Name, p.Protocol, p.Port}) {
			r.srvOnce(b.name, p.Port, r.before)
		}
	}
	if len(r.a.Answer) == r.before {
		return
	}
	for _, ip := range b.ClusterIPs {
		r.extra(b.name, ip)
	}
}

func (r *reply) srvHeadless(b backend, host string, match func(servicePort) bool) {
	eps := b.headless.endpoints
	if host != "" {
		eps = b.headless.named(host)
	}
	var target Name
	var last netip.Addr
	first := r.before // of the records of the endpoint's host
	for i := range eps {
		e := &eps[i]
		if i == 0 || e.host != eps[i-1].host {
			target, last, first = b.name.child(e.host), netip.Addr{}, len(r.a.Answer)
		}
		matched := false
		for _, p := range e.ports {
			if match(servicePort{p.Name, p.Protocol, p.Port}) {
				matched = true
				r.srvOnce(target, p.Port, first)
			}
		}
		if matched && target != "" && e.addr != last {
			r.extra(target, e.addr)
			last = e.addr
		}
	}
}

// srvOnce adds an SRV record unless the host has it already: an endpoint of two
// families is in two slices, and a port can have two protocols.
func (r *reply) srvOnce(target Name, port uint16, first int) {
	for _, have := range r.a.Answer[first:] {
		if have.SRV.Port == port {
			return
		}
	}
	if target != "" {
		r.add(Record{Type: TypeSRV, Target: target, SRV: SRV{Port: port}})
	}
}
