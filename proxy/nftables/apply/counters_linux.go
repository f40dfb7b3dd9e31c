package apply

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy/nftables"
)

// Count is how many new connections to one frontend the kernel has counted since
// the element was written: only the first packet of a connection meets the rules.
type Count struct {
	Service  string // "namespace/name", and ":port" where the port has a name
	Protocol cluster.Protocol
	Frontend netip.AddrPort
	New      uint64
}

// Counts reads the counters of all frontends, sorted by Service, from the tables
// that are in force. It needs no agent: the kernel counts by itself.
func Counts(conn *nft.Conn) ([]Count, error) {
	var counts []Count
	for _, f := range []nft.Family{nft.IPv4, nft.IPv6} {
		fam := &family{conn: conn, family: f}
		ours, err := fam.tables()
		if err != nil {
			return nil, err
		}
		tables, err := fam.inForce(ours)
		if err != nil {
			return nil, err
		}
		for _, table := range tables {
			elements, err := conn.Elements(nftables.NewRuleset(f, table.Name).Services)
			if err != nil {
				return nil, fmt.Errorf("counters: %w", err)
			}
			for _, e := range elements {
				counts = append(counts, count(e))
			}
		}
	}
	slices.SortFunc(counts, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Frontend.Compare(b.Frontend))
	})
	return counts, nil
}

// count reads an element of a services map: address, protocol and port, each
// padded to four bytes; the comment begins with the owner.
func count(e nft.Element) Count {
	n := len(e.Key) - 8
	addr, _ := netip.AddrFromSlice(e.Key[:n])
	owner, _, _ := strings.Cut(e.Comment, " ")
	c := Count{Service: owner, Protocol: cluster.Protocol(e.Key[n]), Frontend: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(e.Key[n+4:]))}
	if e.Counter != nil {
		c.New = e.Counter.Packets
	}
	return c
}
