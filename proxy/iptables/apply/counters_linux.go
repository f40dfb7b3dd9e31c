package apply

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy/iptables"
)

// Count is how many new connections to one frontend the kernel has counted since
// the rules were last written, which every change of a Service does: only the
// first packet of a connection meets the nat table.
type Count struct {
	Service  string // "namespace/name", and ":port" where the port has a name
	Protocol cluster.Protocol
	Frontend netip.AddrPort // of a NodePort the address is unspecified
	New      uint64
}

// Counts reads the counters of all frontends, sorted by Service. It needs no
// agent; where there are no rules of ours there are no counts.
func (a *Applier) Counts() ([]Count, error) {
	sums := map[Count]uint64{}
	for _, f := range a.families {
		save, err := a.run(f.program+"-save", "", "-c", "-t", "nat")
		if err != nil {
			return nil, fmt.Errorf("counters: %w", err)
		}
		for line := range strings.Lines(save) {
			if c, n, ok := parseCount(line, f.v6); ok {
				sums[c] += n
			}
		}
	}
	var all []Count
	for c, n := range sums {
		c.New = n
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Frontend.Compare(b.Frontend))
	})
	return all, nil
}

// parseCount reads a rule that leads to a frontend's chain, as iptables-save -c
// prints it: [packets:bytes] -A CHAIN -d 10.96.0.4/32 -p tcp -m tcp --dport 80 -m
// comment --comment "default/web:http" -j PL-SVC-NAME.
func parseCount(line string, v6 bool) (c Count, packets uint64, ok bool) {
	words := strings.Fields(line)
	if len(words) < 3 || words[1] != "-A" || !strings.HasPrefix(words[len(words)-1], iptables.Prefix+"SVC-") {
		return c, 0, false
	}
	counter, _, _ := strings.Cut(strings.TrimPrefix(words[0], "["), ":")
	packets, err := strconv.ParseUint(counter, 10, 64)
	addr := netip.IPv4Unspecified()
	if v6 {
		addr = netip.IPv6Unspecified()
	}
	var port uint64
	for i, word := range words[:len(words)-1] {
		next := strings.Trim(words[i+1], `"`)
		switch word {
		case "-d":
			p, e := netip.ParsePrefix(next)
			addr, err = p.Addr(), cmp.Or(err, e)
		case "-p":
			c.Protocol = map[string]cluster.Protocol{"tcp": cluster.TCP, "udp": cluster.UDP, "sctp": cluster.SCTP}[next]
		case "--dport":
			port, _ = strconv.ParseUint(next, 10, 16)
		case "--comment":
			c.Service = next
		}
	}
	c.Frontend = netip.AddrPortFrom(addr, uint16(port))
	return c, packets, err == nil && c.Service != "" && port != 0
}
