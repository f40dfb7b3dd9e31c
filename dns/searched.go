package dns

// Searched says whether a name that does not exist is one that a search path
// made: resolvers of pods try "www.example.com" with each of their search domains
// first (ndots:5), which are namespace.svc.<zone>, svc.<zone> and <zone>. A
// Service that is missing in a namespace that exists is none.
func (z *Zone) Searched(n Name, namespace string) bool {
	p, in := n.below(z.cfg.Domain)
	if !in || p.n == 0 {
		return false
	}
	switch p.labels[0] {
	case "svc":
	case "pod", "dns", "dns-version":
		return false
	default:
		return true
	}
	switch {
	case p.n < 3:
		return false
	case p.labels[1] != namespace:
		return !z.namespace(p.labels[1])
	}
	// One label, as in "web", may be a Service that is not there.
	return p.n > 3 && z.snapshot.Services.Get(serviceKey(p)) == nil
}
