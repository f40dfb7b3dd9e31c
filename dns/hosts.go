package dns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// hostsTTL is that of records from hosts entries, in seconds: CoreDNS's.
const hostsTTL = 3600

// Hosts are names with addresses given by hand, and the names of these addresses.
// They are not for names of the cluster's zone.
type Hosts struct {
	addrs map[Name][]netip.Addr
	names map[netip.Addr][]Name
}

// ParseHosts reads lines "ADDRESS NAME..." (hosts(5)). A line that is none is an
// error that names it.
func ParseHosts(text string) (*Hosts, error) {
	h := &Hosts{map[Name][]netip.Addr{}, map[netip.Addr][]Name{}}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		if err := h.add(f[0], f[1:]); err != nil {
			return nil, fmt.Errorf("hosts: line %d: %w", n, err)
		}
	}
	return h, nil
}

func (h *Hosts) add(addr string, names []string) error {
	a, err := netip.ParseAddr(addr)
	if err != nil || len(names) == 0 {
		return fmt.Errorf("%q: want an address and names", strings.Join(append([]string{addr}, names...), " "))
	}
	a = a.Unmap().WithZone("")
	for _, text := range names {
		n, err := ParseName(text)
		if err != nil {
			return fmt.Errorf("%q: %w", text, err)
		}
		if !slices.Contains(h.addrs[n], a) {
			h.addrs[n], h.names[a] = append(h.addrs[n], a), append(h.names[a], n)
		}
	}
	return nil
}

// Names gives all names.
func (h *Hosts) Names() []Name {
	var out []Name
	for n := range h.addrs {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// answer answers for a name that there is an entry of, or of its address. Other
// types than an entry gives are NODATA: other resolvers know another name.
func (h *Hosts) answer(q Question, a *Answer) bool {
	if h == nil {
		return false
	}
	if addr, ok := reverseAddr(q.Name); ok && len(h.names[addr]) > 0 {
		a.reset()
		if q.Type == TypePTR {
			for _, n := range h.names[addr] {
				a.Answer = append(a.Answer, Record{Type: TypePTR, TTL: hostsTTL, Target: n})
			}
		}
		return true
	}
	addrs := h.addrs[q.Name]
	if len(addrs) == 0 {
		return false
	}
	a.reset()
	for _, ip := range addrs {
		if typeOf(ip) == q.Type {
			a.Answer = append(a.Answer, Record{Type: q.Type, TTL: hostsTTL, Addr: ip})
		}
	}
	return true
}
