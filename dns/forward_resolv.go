package dns

import (
	"fmt"
	"net/netip"

	"github.com/miekg/dns"
)

// Resolvers reads the name servers of a file like /etc/resolv.conf. One that is
// no address is an error that names it.
func Resolvers(path string) ([]netip.AddrPort, error) {
	c, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("resolvers: %w", err)
	}
	var out []netip.AddrPort
	for _, s := range c.Servers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("resolvers: %s: nameserver %q: %w", path, s, err)
		}
		out = append(out, netip.AddrPortFrom(a, 53))
	}
	return out, nil
}
