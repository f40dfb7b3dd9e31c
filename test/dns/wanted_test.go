package dns

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// difference is one that we want, with its reason.
type difference struct {
	why string
	is  func(q ask, ours, theirs reply) bool
}

// wanted are the differences that are meant, in the order they are looked for.
// "spec" is the Kubernetes DNS specification.
var wanted = []difference{
	// CoreDNS reads what it can and leaves the rest. A request with other records
	// than its header says, bytes behind its end or an opcode other than QUERY gets
	// FORMERR or NOTIMP from us (RFC 1035, section 4.1.1), an answer nothing.
	{"a broken request is refused", func(q ask, ours, theirs reply) bool {
		return q.broken != "" && (ours.code == dns.RcodeFormatError || ours.code == dns.RcodeNotImplemented || ours.code == dns.RcodeBadVers || ours.silent)
	}},
	// There are no records of other classes; CoreDNS does not look at the class.
	{"another class than IN is refused", func(q ask, ours, theirs reply) bool {
		return q.class != dns.ClassINET && ours.code == dns.RcodeRefused
	}},
	// We ask other resolvers where recursion is desired (RFC 1034, section 4.3.1);
	// CoreDNS always does.
	{"no recursion that was not asked for", func(q ask, ours, theirs reply) bool {
		return !q.rd && q.path() == nil && ours.code == dns.RcodeRefused
	}},
	{"and none to the target of an external name", func(q ask, ours, theirs reply) bool {
		return !q.rd && q.kind == "external" && len(ours.answer) == 1 && slices.Contains(theirs.answer, ours.answer[0])
	}},
	// Transfers are refused for all names (RFC 5936, section 2.2.1): no resolver
	// answers them.
	{"transfers are refused", func(q ask, ours, theirs reply) bool {
		return (q.typ >= dns.TypeIXFR && q.typ <= dns.TypeMAILA) && ours.code == dns.RcodeRefused
	}},
	// RFC 8482: one small record; CoreDNS says that there is nothing.
	{"ANY has a HINFO record", func(q ask, ours, theirs reply) bool {
		return q.typ == dns.TypeANY && len(ours.answer) == 1 && strings.Contains(ours.answer[0], "rfc8482")
	}},
	// CoreDNS's text is of its own TTL, 28800; spec 2.2 leaves it open.
	{"TTL of dns-version", func(q ask, ours, theirs reply) bool {
		return q.at("dns-version") && q.typ == dns.TypeTXT && len(ours.answer) == 1 && len(theirs.answer) == 1
	}},
	// The name servers: ours has the addresses of the Service of the DNS, CoreDNS
	// has those of its own machine under names that change.
	{"NS and ns.dns", func(q ask, ours, theirs reply) bool {
		return q.at() && q.typ == dns.TypeNS || q.at("dns", "ns")
	}},
	// A name that has records of another type, or names below it, exists (RFC 2308,
	// section 2.2; RFC 8020).
	{"what exists is NODATA: dns, dns-version, namespaces", func(q ask, ours, theirs reply) bool {
		p := q.path()
		return ours.nodata() && theirs.code == dns.RcodeNameError &&
			(q.at("dns") || q.at("dns-version") || len(p) > 0 && len(p) <= 2 && (p[0] == "svc" || p[0] == "pod"))
	}},
	{"what exists is NODATA: _tcp above a named port", func(q ask, ours, theirs reply) bool {
		p := q.path()
		return len(p) == 4 && p[3][0] == '_' && ours.nodata() && theirs.code == dns.RcodeNameError
	}},
	// CoreDNS says NODATA for SOA of any name below the zone.
	{"what does not exist is NXDOMAIN, also for SOA", func(q ask, ours, theirs reply) bool {
		return q.typ == dns.TypeSOA && ours.code == dns.RcodeNameError && theirs.nodata()
	}},
	// Names of endpoints, and PTR records to them, are specified for headless
	// Services alone (spec 2.4.1, 2.4.3; 2.3 has none).
	{"no endpoint names below a Service with a cluster IP", func(q ask, ours, theirs reply) bool {
		return !q.all && strings.HasPrefix(q.kind, "cluster") && len(q.path()) == 4 && ours.code == dns.RcodeNameError && theirs.code == dns.RcodeSuccess
	}},
	{"no PTR to endpoints of a Service with a cluster IP, but to those that publishNotReadyAddresses names", func(q ask, ours, theirs reply) bool {
		return q.typ == dns.TypePTR && q.reverse() && q.onlyOf(" publish", ours.answer, theirs.answer) && q.onlyOf("cluster", theirs.answer, ours.answer)
	}},
	// _port._proto names have SRV records alone (spec 2.3.2, 2.4.2).
	{"no addresses at the name of a port", func(q ask, ours, theirs reply) bool {
		return q.port() && (q.typ == dns.TypeA || q.typ == dns.TypeAAAA) && ours.nodata() && len(theirs.answer) > 0
	}},
	// "Unnamed ports do not have an SRV record" (spec 2.3.2); and the name of a port
	// begins with an underscore, as its protocol does (RFC 2782).
	{"no name for an unnamed port, none without underscores", func(q ask, ours, theirs reply) bool {
		p := q.path()
		return len(p) == 5 && (p[4] == "_" || p[3] == "_" || p[4][0] != '_' || p[3][0] != '_') && ours.code == dns.RcodeNameError && theirs.code == dns.RcodeSuccess
	}},
	// The weight is not prescribed (spec 2.3.2); CoreDNS's depends on how many
	// addresses the target has.
	{"weight of SRV records", func(q ask, ours, theirs reply) bool {
		return q.typ == dns.TypeSRV && ours.code == theirs.code && slices.Equal(weightless(ours.answer), weightless(theirs.answer)) && slices.Equal(ours.extra, theirs.extra)
	}},
	// The code, and the SOA record of a negative answer, are those of the name at the
	// end (RFC 6604; RFC 2308, section 2.1); CoreDNS ends with the CNAME.
	{"code and SOA of an external name's target", func(q ask, ours, theirs reply) bool {
		return q.kind == "external" && slices.Equal(ours.answer, theirs.answer) && len(ours.ns) == 1 && strings.Contains(ours.ns[0], " in soa ")
	}},
	// publishNotReadyAddresses makes all endpoints ready (spec 2.1); CoreDNS leaves
	// that to the controller that makes the slices, which those made by hand lack.
	{"publishNotReadyAddresses, also in slices made by hand", func(q ask, ours, theirs reply) bool {
		return strings.HasSuffix(q.kind, " publish") && ours.code == dns.RcodeSuccess && subset(weightless(theirs.answer), weightless(ours.answer))
	}},
	// Additional records come as far as there is room, which is less for us since the
	// targets of SRV records are not compressed (RFC 2782); that some are missing does
	// not set TC (RFC 2181, section 9). Over TCP all of them are compared.
	{"additional records that have no room", func(q ask, ours, theirs reply) bool {
		return !q.tcp && !ours.truncated && ours.code == theirs.code && len(ours.extra) < len(q.full(ours, theirs)) &&
			slices.Equal(weightless(ours.answer), weightless(theirs.answer))
	}},
	// No answer over UDP has more than 1,232 bytes, whatever the client takes (DNS flag
	// day 2020): what is longer comes over TCP.
	{"no long datagrams", func(q ask, ours, theirs reply) bool {
		return ours.truncated && !q.tcp && subset(weightless(ours.answer), weightless(theirs.answer))
	}},
	// A CNAME is the answer to every type (RFC 1034, section 3.6.2; spec 2.5);
	// CoreDNS gives it for A, AAAA and CNAME.
	{"CNAME for every type", func(q ask, ours, theirs reply) bool {
		return q.kind == "external" && strings.Contains(strings.Join(ours.answer, "\n"), " in cname ") && theirs.nodata()
	}},
	// An address record of a pod is all there is (spec 2.6).
	{"no SRV record at the name of a pod", func(q ask, ours, theirs reply) bool {
		p := q.path()
		return len(p) == 3 && p[0] == "pod" && q.typ == dns.TypeSRV && ours.nodata()
	}},
	// CoreDNS leaves out what it does not understand left of an address or of a pod.
	{"what is left of an address is no name of it", func(q ask, ours, theirs reply) bool {
		p := q.path()
		return q.reverse() && strings.HasPrefix(strings.ToLower(q.name), "x.") || len(p) > 3 && p[0] == "pod" && ours.code == dns.RcodeNameError
	}},
	// The zones of all addresses are not ours; only those of Services are answered.
	{"arpa, in-addr.arpa and ip6.arpa are not ours", func(q ask, ours, theirs reply) bool {
		return q.reverse() && !slices.ContainsFunc(theirs.answer, func(s string) bool { return strings.Contains(s, " in ptr ") })
	}},
}

// at says whether the question is for a name below the zone, by its labels from
// the zone outwards.
func (q ask) at(labels ...string) bool {
	p := q.path()
	return p != nil && slices.Equal(p, labels) || len(labels) == 0 && strings.EqualFold(q.name, "cluster.local.")
}

func (q ask) reverse() bool { return strings.HasSuffix("."+strings.ToLower(q.name), ".arpa.") }

// port says whether the name is one of a port.
func (q ask) port() bool { return len(q.path()) == 5 }

// full gives the additional records that either has, or one more than ours where
// both are cut.
func (q ask) full(ours, theirs reply) []string {
	all := append(slices.Clone(ours.extra), theirs.extra...)
	if slices.Sort(all); theirs.truncated {
		all = append(all, "")
	}
	return slices.Compact(all)
}

func (r reply) nodata() bool { return !r.silent && r.code == dns.RcodeSuccess && len(r.answer) == 0 }

func subset(some, all []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool { return !slices.Contains(all, s) })
}

// onlyOf says whether the PTR records of some that are not among others lead to
// endpoints of one kind of Services that we leave out, or are the upstream's.
func (q ask) onlyOf(kind string, some, others []string) bool {
	return !slices.ContainsFunc(some, func(s string) bool {
		l := dns.SplitDomainName(s[strings.LastIndexByte(s, ' ')+1:])
		return !slices.Contains(others, s) && (len(l) < 3 || !strings.Contains(q.kinds[l[1]+"."+l[2]], kind) || q.all && kind == "cluster") && strings.Contains(s, ".cluster.local.")
	})
}

func weightless(records []string) []string {
	var out []string
	for _, r := range records {
		f := strings.Fields(r)
		if len(f) > 5 {
			f[5] = "?"
		}
		out = append(out, strings.Join(f, " "))
	}
	slices.Sort(out)
	return out
}

// explain gives the reason of a difference, or "".
func explain(q ask, ours, theirs reply) string {
	for _, w := range wanted {
		if w.is(q, ours, theirs) {
			return w.why
		}
	}
	return ""
}
