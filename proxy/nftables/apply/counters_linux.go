package apply

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/proxy/nftables"
)

// Count is how many new connections to one frontend the kernel has counted since
// the Service was there or the table was built: only the first packet of a
// connection meets the rules.
type Count struct {
	Service  string // "namespace/name", and ":port" where the port has a name
	Protocol cluster.Protocol
	Frontend netip.AddrPort // of a NodePort the address is unspecified
	New      uint64
}

// EndpointCount is how many new connections went to one endpoint of a port. It
// begins anew when a Service's affinity or policy changes.
type EndpointCount struct {
	Service  string
	Protocol cluster.Protocol
	Endpoint netip.AddrPort
	New      uint64
}

// Counts reads the counters of all frontends, sorted by Service, from the tables
// that are in force. It needs no agent: the kernel counts by itself.
func Counts(conn *nft.Conn) ([]Count, error) {
	var all []Count
	err := eachFront(conn, func(r nftables.Ruleset, e nft.Element, _ bool) error {
		c := count(r.Table.Family, e)
		if e.Counter != nil {
			c.New = e.Counter.Packets
		}
		all = append(all, c)
		return nil
	})
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Frontend.Compare(b.Frontend))
	})
	return all, err
}

// EndpointCounts reads the counters of endpoints, sorted, of the Services that
// have them (see proxy.Port.Count), or of one of these: "namespace/name", with
// ":port" or without. It reads single elements: to list all endpoints takes the
// kernel a time that grows with the square of their number.
func EndpointCounts(conn *nft.Conn, service string) ([]EndpointCount, error) {
	sums := map[EndpointCount]uint64{}
	sticky := map[nft.Table]bool{}
	err := eachFront(conn, func(r nftables.Ruleset, e nft.Element, nodePort bool) error {
		c := count(r.Table.Family, e)
		if name, _, _ := strings.Cut(c.Service, ":"); !nftables.Counted(e.Comment) || service != "" && service != c.Service && service != name {
			return nil
		}
		sticky[r.Table] = true
		endpoints := r.Endpoints
		if nodePort {
			endpoints = r.NodePortEndpoints
		}
		for _, first := range []uint32{0, nftables.LocalSlot} {
			if err := addSlots(conn, endpoints, e.Key, first, EndpointCount{Service: c.Service, Protocol: c.Protocol}, sums); err != nil {
				return err
			}
		}
		return nil
	})
	for t := range sticky {
		err = errors.Join(err, addSticky(conn, t, service, sums))
	}
	var all []EndpointCount
	for c, n := range sums {
		c.New = n
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b EndpointCount) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Protocol, b.Protocol), a.Endpoint.Compare(b.Endpoint))
	})
	return all, err
}

// eachFront gives the elements of the maps of frontends in force.
func eachFront(conn *nft.Conn, f func(r nftables.Ruleset, e nft.Element, nodePort bool) error) error {
	for _, v := range []nft.Family{nft.IPv4, nft.IPv6} {
		fam := &family{conn: conn, family: v}
		tables, err := fam.forced()
		if err != nil {
			return err
		}
		for _, table := range tables {
			if !slices.Contains(nftables.Names[:], table.Name) {
				continue // of another layout, for a moment
			}
			r := nftables.NewRuleset(v, table.Name)
			for _, s := range []nft.Set{r.Services, r.NodePorts} {
				elements, err := conn.Elements(s)
				if err != nil {
					return fmt.Errorf("counters: %w", err)
				}
				for _, e := range elements {
					if err := f(r, e, s.Name == r.NodePorts.Name); err != nil {
						return fmt.Errorf("counters: %w", err)
					}
				}
			}
		}
	}
	return nil
}

// count reads an element of a map of frontends: address, where there is one,
// protocol and port, each padded to four bytes; the comment begins with the owner.
func count(f nft.Family, e nft.Element) Count {
	n := len(e.Key) - 8
	addr, ok := netip.AddrFromSlice(e.Key[:n])
	switch {
	case !ok && f == nft.IPv6:
		addr = netip.IPv6Unspecified()
	case !ok:
		addr = netip.IPv4Unspecified()
	}
	owner, _, _ := strings.Cut(e.Comment, " ")
	return Count{Service: owner, Protocol: cluster.Protocol(e.Key[n]), Frontend: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(e.Key[n+4:]))}
}

// addSlots adds the counters of one run of slots, which has no gaps.
func addSlots(conn *nft.Conn, s nft.Set, key []byte, first uint32, c EndpointCount, sums map[EndpointCount]uint64) error {
	for slot := first; ; slot++ {
		e, err := conn.GetElement(s, nft.Concat(slices.Clone(key)).Mark(slot))
		if errors.Is(err, nft.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		n := len(e.Data) - 4
		addr, _ := netip.AddrFromSlice(e.Data[:n])
		c.Endpoint = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(e.Data[n:]))
		if e.Counter != nil {
			sums[c] += e.Counter.Packets
		}
	}
}

// addSticky adds the counters in the chains of endpoints with affinity, whose
// comments are "namespace/name:port protocol endpoint".
func addSticky(conn *nft.Conn, t nft.Table, service string, sums map[EndpointCount]uint64) error {
	rules, err := conn.Rules(t)
	if err != nil {
		return err
	}
	for _, r := range rules {
		words := strings.Fields(r.Comment)
		if len(words) != 3 || !slices.Contains(r.Exprs, "counter") {
			continue
		}
		to, err := netip.ParseAddrPort(words[2])
		if name, _, _ := strings.Cut(words[0], ":"); err != nil || service != "" && service != words[0] && service != name {
			continue
		}
		p := map[string]cluster.Protocol{"tcp": cluster.TCP, "udp": cluster.UDP, "sctp": cluster.SCTP}[words[1]]
		sums[EndpointCount{Service: words[0], Protocol: p, Endpoint: to}] += r.Counter.Packets
	}
	return nil
}

// keepCounters has what the transaction deletes and makes again go on counting
// where it was: a frontend, and an endpoint that moves to another slot. What
// cannot be read begins anew.
func keepCounters(conn *nft.Conn, tx *nft.Tx) {
	again := map[string]bool{}
	tx.EachElement(func(s nft.Set, deleted bool, e *nft.Element) {
		if counts(s) && !deleted && (s.Counter || e.Counter != nil) {
			again[counterFront(s, e)] = true
		}
	})
	if len(again) == 0 {
		return
	}
	had := map[string]*nft.Counter{}
	tx.EachElement(func(s nft.Set, deleted bool, e *nft.Element) {
		if !deleted || !counts(s) || !again[counterFront(s, e)] {
			return
		}
		if old, err := conn.GetElement(s, e.Key); err == nil {
			had[counterKey(s, &old)] = old.Counter
		}
	})
	tx.EachElement(func(s nft.Set, deleted bool, e *nft.Element) {
		if deleted || !counts(s) || !s.Counter && e.Counter == nil {
			return
		}
		if c := had[counterKey(s, e)]; c != nil {
			e.Counter = c
		}
	})
}

func counts(s nft.Set) bool {
	switch s.Name {
	case "services", "nodeports", "endpoints", "nodeport-endpoints":
		return true
	}
	return false
}

// counterFront tells frontends apart; slots of endpoints of this node are apart
// from the others.
func counterFront(s nft.Set, e *nft.Element) string {
	if s.Counter {
		return s.Name + string(e.Key)
	}
	n := len(e.Key) - 4
	first := binary.NativeEndian.Uint32(e.Key[n:]) & nftables.LocalSlot
	return fmt.Sprint(s.Name, first, string(e.Key[:n]))
}

// counterKey tells what is counted: a frontend, or of a frontend an endpoint
// wherever it sits.
func counterKey(s nft.Set, e *nft.Element) string {
	if s.Counter {
		return counterFront(s, e)
	}
	return counterFront(s, e) + string(e.Data)
}
