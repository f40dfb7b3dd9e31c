package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/dns"
)

// Resolution is how a pod's resolver finds the addresses of a name.
type Resolution struct {
	Name   string   `json:"name"`
	Server string   `json:"server"` // the nameserver line of the pod's /etc/resolv.conf
	Search []string `json:"search"` // its search line
	// Tries are the names asked for, in order, to the first with an address.
	Tries []Try `json:"tries"`
	// AnsweredBy are the DNS servers that the queries may go to.
	AnsweredBy *ServiceChoice `json:"answered_by,omitempty"`
}

// Try is one name asked for.
type Try struct {
	Name   string       `json:"name"`
	Code   string       `json:"code"` // NOERROR, NXDOMAIN, ..., or forwarded
	Addrs  []netip.Addr `json:"addrs,omitempty"`
	TTL    uint32       `json:"ttl,omitempty"`
	Alias  string       `json:"alias,omitempty"` // of an ExternalName Service
	Wasted bool         `json:"wasted"`          // asked without need: a name with all its parts saves it
}

// ndots is what the kubelet writes for pods (options ndots:5).
const ndots = 5

// resolve asks for a name as a pod's resolver does. It gives false where no
// address comes of it.
func (w *World) resolve(q *question, ans *Answer) bool {
	r := &Resolution{Name: q.name, Tries: []Try{}}
	ans.Name = r
	if q.from.Kind != "pod" || q.from.HostNetwork {
		ans.Reason = fmt.Sprintf("%s %s asks the node's own resolver, which is not the cluster's: give an address, or svc/NAMESPACE/NAME:PORT", q.from.Kind, q.from.Name)
		return false
	}
	server := w.Snapshot.Services.Get(w.DNS)
	if server == nil || len(server.ClusterIPs) == 0 {
		ans.Reason = fmt.Sprintf("there is no Service %s with a cluster IP, where pods ask for names", w.DNS)
		return false
	}
	r.Server = server.ClusterIPs[0].String()
	ns := q.from.Pod.Namespace
	r.Search = []string{ns + ".svc." + w.Domain, "svc." + w.Domain, w.Domain}
	t := &traveller{World: w, answer: &Answer{}, protocol: cluster.UDP}
	if p := w.plan(q.from.Node); p != nil {
		if v6 := server.ClusterIPs[0].Is6(); hasFamily(q.from.Addrs, v6) {
			src := End{Kind: "pod", Node: q.from.Node, Addr: firstOf(q.from.Addrs, v6)}
			r.AnsweredBy, _ = t.choose(p, src.Addr, netip.AddrPortFrom(server.ClusterIPs[0], 53), false)
		}
	}
	if r.AnsweredBy != nil && r.AnsweredBy.Verdict != "balance" {
		ans.Reason = fmt.Sprintf("the DNS Service %s has no ready endpoint: no name resolves", w.DNS)
		return false
	}
	return w.ask(q, r, ans)
}

func hasFamily(addrs []netip.Addr, v6 bool) bool { return firstOf(addrs, v6).IsValid() }

func firstOf(addrs []netip.Addr, v6 bool) netip.Addr {
	for _, a := range addrs {
		if a.Is6() == v6 {
			return a
		}
	}
	return netip.Addr{}
}

// candidates are the names that a resolver asks for, in order (resolv.conf(5)).
func candidates(name string, search []string) []string {
	if strings.HasSuffix(name, ".") {
		return []string{name}
	}
	var list []string
	for _, s := range search {
		list = append(list, name+"."+s+".")
	}
	if strings.Count(name, ".") >= ndots {
		return append([]string{name + "."}, list...)
	}
	return append(list, name+".")
}

func (w *World) ask(q *question, r *Resolution, ans *Answer) bool {
	domain, err := dns.ParseName(w.Domain)
	if err != nil {
		ans.Reason = err.Error()
		return false
	}
	zone := dns.Compile(nil, w.part(q.name), dns.Config{Domain: domain, TTL: 5, Pods: dns.PodsInsecure, Service: w.DNS})
	for _, name := range candidates(q.name, r.Search) {
		try := askZone(zone, name, q)
		r.Tries = append(r.Tries, try)
		if len(try.Addrs) > 0 {
			return w.take(q, r, ans, try)
		}
		r.Tries[len(r.Tries)-1].Wasted = true
		if try.Code == "forwarded" && try.Alias == "" && name == strings.TrimSuffix(q.name, ".")+"." {
			ans.Reason = fmt.Sprintf("%s is not in the zone %s: the DNS servers ask their own resolvers for it", name, w.Domain)
			return false
		}
		if try.Alias != "" && try.Code == "forwarded" {
			ans.Reason = fmt.Sprintf("%s is another name for %s, which is outside the cluster: the DNS servers ask their own resolvers for it", name, try.Alias)
			return false
		}
	}
	ans.Reason = fmt.Sprintf("no name that %s stands for exists (%d tried)", q.name, len(r.Tries))
	return false
}

// part is what of the Snapshot an answer about a name can depend on: the Services
// that are named like one of its labels, and those that they are aliases of. A
// zone of the whole takes longer to compile than everything else here.
func (w *World) part(name string) *cluster.Snapshot {
	labels := map[string]bool{w.DNS.Name: true}
	add := func(name string) {
		for label := range strings.SplitSeq(strings.ToLower(name), ".") {
			labels[label] = true
		}
	}
	add(name)
	services, slices, endpoints := map[cluster.Key]*cluster.Service{}, map[cluster.Key]*cluster.EndpointSlice{}, map[cluster.Key]*cluster.ServiceSlices{}
	for before := -1; before < len(services); {
		before = len(services)
		for k, s := range w.Snapshot.Services.All() {
			if services[k] == nil && labels[k.Name] {
				services[k] = s
				add(s.ExternalName)
			}
		}
	}
	for k := range services {
		if of := w.Snapshot.Endpoints.Get(k); of != nil {
			endpoints[k] = of
			for _, s := range of.Slices {
				slices[s.Key] = s
			}
		}
	}
	out := &cluster.Snapshot{Nodes: w.Snapshot.Nodes, Namespaces: w.Snapshot.Namespaces}
	out.Services, out.Slices, out.Endpoints = out.Services.With(services), out.Slices.With(slices), out.Endpoints.With(endpoints)
	return out
}

func (w *World) take(q *question, r *Resolution, ans *Answer, try Try) bool {
	var err error
	usable := make([]netip.Addr, 0, len(try.Addrs))
	for _, a := range try.Addrs {
		if hasFamily(q.from.Addrs, a.Is6()) {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		ans.Reason = fmt.Sprintf("%s has only addresses of a family that %s has not", try.Name, q.from.Name)
		return false
	}
	if q.addr, err = pick(usable, q.IPv6, "name "+q.name); err != nil {
		ans.Reason = err.Error()
		return false
	}
	if len(usable) > 1 {
		ans.Notes = append(ans.Notes, fmt.Sprintf("the name has %d addresses, and the client's library chooses: this is the way to %s", len(usable), q.addr))
	}
	return true
}

func askZone(zone *dns.Zone, name string, q *question) Try {
	try := Try{Name: name, Code: "NXDOMAIN"}
	n, err := dns.ParseName(name)
	if err != nil {
		try.Code = "illegal"
		return try
	}
	var a dns.Answer
	for _, typ := range []dns.Type{dns.TypeA, dns.TypeAAAA} {
		zone.Answer(dns.Question{Name: n, Type: typ}, &a)
		switch {
		case a.Chase != "":
			try.Code, try.Alias = "forwarded", a.Chase.String()
		case a.Outside:
			try.Code = "forwarded"
		case a.Code == dns.NoError:
			try.Code = "NOERROR"
		}
		for _, rec := range a.Answer {
			if rec.Type == typ {
				try.Addrs, try.TTL = append(try.Addrs, rec.Addr), rec.TTL
			} else if rec.Type == dns.TypeCNAME {
				try.Alias = rec.Target.String()
			}
		}
	}
	return try
}
