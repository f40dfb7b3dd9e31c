package dns

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
)

// maxChain is the most CNAMEs in one answer. ExternalName Services can point at
// each other in a ring.
const maxChain = 8

// Answer writes into a what the zone says to q. It does not fail: what does not
// exist is NXDomain, and a name of another zone is Outside. The address records
// of one name come in an order that q.Seed turns.
func (z *Zone) Answer(q Question, a *Answer) {
	a.reset()
	if q.Type >= TypeIXFR && q.Type <= TypeMAILA {
		z.refuse(q, a)
		return
	}
	p, in := q.Name.below(z.cfg.Domain)
	if !in {
		z.reverse(q, a)
		return
	}
	z.follow(q, p, a)
}

// refuse refuses transfers (there are none) and other questions that are not for
// records.
func (z *Zone) refuse(q Question, a *Answer) {
	if _, in := q.Name.below(z.cfg.Domain); in {
		a.Code = Refused
		return
	}
	a.Outside = true
}

// follow answers q and, through ExternalName Services that point into the zone,
// what it leads to. An answer without what was asked for has the zone's SOA (RFC
// 2308).
func (z *Zone) follow(q Question, p path, a *Answer) {
	owner := Name("") // the question's
	for range maxChain {
		r := reply{z: z, q: q, a: a, owner: owner, before: len(a.Answer)}
		exists, target := r.lookup(p)
		if !exists {
			a.Code = NXDomain
		}
		if target == "" || q.Type == TypeCNAME {
			if len(a.Answer) == r.before {
				a.Authority = append(a.Authority, z.soa())
			}
			return
		}
		var in bool
		if p, in = target.below(z.cfg.Domain); !in {
			a.Chase = target
			return
		}
		q.Name, owner = target, target
	}
	a.Code, a.Answer = ServFail, a.Answer[:0]
}

func (z *Zone) soa() Record {
	return Record{Name: z.cfg.Domain, Type: TypeSOA, TTL: z.cfg.TTL, Target: z.nameServer(), Serial: z.serial}
}

func (z *Zone) nameServer() Name { return z.cfg.Domain.child("ns", "dns") }

// reply is one step of an answer: what is under one name.
type reply struct {
	z      *Zone
	q      Question
	a      *Answer
	owner  Name // of the records
	before int  // length of the answer section before this step
}

// lookup adds the records that the name has of the type asked for, and says
// whether there is such a name: one that has records of another type or names
// below it exists (RFC 8020). A target is that of a CNAME, the name's only
// record.
func (r *reply) lookup(p path) (exists bool, target Name) {
	if p.n > maxDepth {
		return false, ""
	}
	switch top := p.labels[0]; {
	case p.n == 0:
		exists = r.apex()
	case top == "svc":
		exists, target = r.svc(p)
	case top == "pod":
		exists = r.pod(p)
	case top == "dns" && p.n <= 2:
		exists = p.n == 1 || p.labels[1] == "ns"
		if p.n == 2 && exists {
			r.nameServer()
		}
	case top == "dns-version" && p.n == 1:
		exists = true
		r.add(Record{Type: TypeTXT, Text: Schema})
	}
	if exists && r.q.Type == TypeANY && len(r.a.Answer) == r.before {
		r.a.Answer = append(r.a.Answer, Record{Name: r.owner, Type: TypeHINFO, TTL: r.z.cfg.TTL, Text: "RFC8482"})
	}
	return exists, target
}

// add adds a record if it is of the type asked for.
func (r *reply) add(rec Record) {
	if rec.Type != r.q.Type {
		return
	}
	rec.Name, rec.TTL = r.owner, r.z.cfg.TTL
	r.a.Answer = append(r.a.Answer, rec)
}

func typeOf(a netip.Addr) Type {
	if a.Is4() {
		return TypeA
	}
	return TypeAAAA
}

func (r *reply) addr(a netip.Addr) { r.add(Record{Type: typeOf(a), Addr: a}) }

// extra adds the addresses of a name that another record points at.
func (r *reply) extra(n Name, a netip.Addr) {
	r.a.Extra = append(r.a.Extra, Record{Name: n, Type: typeOf(a), TTL: r.z.cfg.TTL, Addr: a})
}

// turn brings the records of this step into the order of the question's seed.
func (r *reply) turn() {
	l := r.a.Answer[r.before:]
	if len(l) < 2 {
		return
	}
	k := int(r.q.Seed) % len(l)
	slices.Reverse(l[:k])
	slices.Reverse(l[k:])
	slices.Reverse(l)
}

// apex has the records of the zone itself.
func (r *reply) apex() bool {
	switch ns := r.z.nameServer(); r.q.Type {
	case TypeSOA:
		r.a.Answer = append(r.a.Answer, r.z.soa())
	case TypeNS:
		r.add(Record{Type: TypeNS, Target: ns})
		for _, ip := range r.z.serverIPs() {
			r.extra(ns, ip)
		}
	}
	return true
}

// nameServer has the addresses of ns.dns.<zone>.
func (r *reply) nameServer() {
	for _, ip := range r.z.serverIPs() {
		r.addr(ip)
	}
}

func (z *Zone) serverIPs() []netip.Addr {
	if s := z.snapshot.Services.Get(z.cfg.Service); s != nil {
		return s.ClusterIPs
	}
	return nil
}

// namespace says whether a namespace exists.
func (z *Zone) namespace(name string) bool {
	k := cluster.Key{Name: name}
	return z.snapshot.Namespaces.Get(k) != nil || z.inhabited.Get(k) != nil
}

// pod has the records address-with-dashes.namespace.pod.<zone>.
func (r *reply) pod(p path) bool {
	if r.z.cfg.Pods != PodsInsecure && r.z.cfg.Pods != PodsVerified || p.n > 3 {
		return false
	}
	if p.n == 1 {
		return true
	}
	ns := p.labels[1]
	if p.n == 2 || !r.z.namespace(ns) {
		return r.z.namespace(ns)
	}
	a, ok := undashed(p.labels[2])
	if !ok || r.z.cfg.Pods == PodsVerified && r.z.pods.Get(cluster.Key{Namespace: ns, Name: addrKey(a).Name}) == nil {
		return false
	}
	r.addr(a)
	return true
}

// reverse answers for the names of addresses. One that belongs to no Service is
// not known here, which does not say that it does not exist. What has no PTR
// record that could be sent, or another type, has the SOA record that negative
// answers need (RFC 2308).
func (z *Zone) reverse(q Question, a *Answer) {
	addr, ok := reverseAddr(q.Name)
	if !ok {
		a.Outside = true
		return
	}
	o := z.owners.Get(addrKey(addr))
	if o == nil {
		a.Outside = true
		return
	}
	r := reply{z: z, q: q, a: a}
	for _, n := range z.namesOf(addr, o.services) {
		r.add(Record{Type: TypePTR, Target: n})
	}
	if len(a.Answer) == 0 {
		soa := z.soa()
		soa.Name = arpa4
		if addr.Is6() {
			soa.Name = arpa6
		}
		a.Authority = append(a.Authority, soa)
	}
}

// namesOf gives the names of an address: a cluster IP is a Service's, any other an
// endpoint's.
func (z *Zone) namesOf(addr netip.Addr, services []cluster.Key) []Name {
	var vips, hosts []Name
	for _, k := range services {
		h, base := z.headless.Get(k), z.serviceName(k)
		if s := z.snapshot.Services.Get(k); h == nil || s != nil && slices.Contains(s.ClusterIPs, addr) {
			vips = appendName(vips, base)
			continue
		}
		for i := range h.endpoints {
			if h.endpoints[i].addr == addr {
				hosts = appendName(hosts, base.child(h.endpoints[i].host))
			}
		}
	}
	if vips != nil {
		return vips
	}
	return hosts
}

// appendName leaves out what cannot be sent and what is there already.
func appendName(l []Name, n Name) []Name {
	if n == "" || slices.Contains(l, n) {
		return l
	}
	return append(l, n)
}

func (z *Zone) serviceName(k cluster.Key) Name {
	return z.cfg.Domain.child(k.Name, k.Namespace, "svc")
}
