package cni

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/overlay"
)

// IPAM gives out the addresses of a node's pod CIDRs, one for each family that
// the node has. It reads no clock and writes nothing; the Record is what lasts.
//
// An address is not given again at once: a peer may still hold a neighbour, a
// connection or a DNS answer of the pod that had it (containernetworking/plugins
// issue 858). The search goes on where it stopped, so what was released comes
// last, and for the hold-back time a released address is only given when the
// CIDR has no other.
//
// Never given: the network's own address (for IPv6 the subnet-router anycast
// address, RFC 4291 section 2.6.1), the gateway, and IPv4's broadcast address.
type IPAM struct {
	node     string
	hold     time.Duration
	cidrs    []netip.Prefix
	used     map[netip.Addr]struct{}
	released map[netip.Addr]time.Time
	last     map[netip.Prefix]netip.Addr
}

// NewIPAM gives an IPAM without pod CIDRs. The node's name is for its errors.
func NewIPAM(node string, hold time.Duration) *IPAM {
	return &IPAM{
		node: node, hold: hold,
		used:     map[netip.Addr]struct{}{},
		released: map[netip.Addr]time.Time{},
		last:     map[netip.Prefix]netip.Addr{},
	}
}

// SetCIDRs replaces the pod CIDRs. Addresses in use of a CIDR that is gone stay
// in use.
func (m *IPAM) SetCIDRs(cidrs []netip.Prefix) { m.cidrs = cidrs }

// Claim marks addresses as used, as they are on record.
func (m *IPAM) Claim(addrs ...netip.Addr) {
	for _, a := range addrs {
		m.used[a] = struct{}{}
		delete(m.released, a)
	}
}

// Release gives addresses back at the time now.
func (m *IPAM) Release(now time.Time, addrs ...netip.Addr) {
	maps.DeleteFunc(m.released, func(_ netip.Addr, at time.Time) bool { return now.Sub(at) >= m.hold })
	for _, a := range addrs {
		if _, ok := m.used[a]; ok {
			delete(m.used, a)
			m.released[a] = now
		}
	}
}

// Take gives one free address of each family, and the gateways that belong to
// them in the same order. A family's CIDRs are tried in their order. It takes
// all or nothing.
func (m *IPAM) Take(now time.Time) (addrs, gateways []netip.Addr, err error) {
	for _, v6 := range m.families() {
		cidr, a, err := m.pick(v6, now)
		if err != nil {
			return nil, nil, err
		}
		addrs, gateways = append(addrs, a), append(gateways, overlay.Gateway(cidr))
	}
	if len(addrs) == 0 {
		return nil, nil, fmt.Errorf("node %s has no pod CIDR", m.node)
	}
	m.Claim(addrs...)
	for _, a := range addrs {
		m.last[m.cidrOf(a)] = a
	}
	return addrs, gateways, nil
}

// Full says which family's CIDRs are used up, or nil.
func (m *IPAM) Full() error {
	for _, v6 := range m.families() {
		if _, _, err := m.pick(v6, time.Time{}); err != nil {
			return err
		}
	}
	return nil
}

// families gives the families of the CIDRs (true is IPv6) in their order.
func (m *IPAM) families() (v6s []bool) {
	for _, c := range m.cidrs {
		if v6 := c.Addr().Is6(); !slices.Contains(v6s, v6) {
			v6s = append(v6s, v6)
		}
	}
	return v6s
}

func (m *IPAM) cidrOf(a netip.Addr) netip.Prefix {
	i := slices.IndexFunc(m.cidrs, func(c netip.Prefix) bool { return c.Contains(a) })
	return m.cidrs[i]
}

// pick finds a family's next address: free and not held back, or else the one
// that was released first.
func (m *IPAM) pick(v6 bool, now time.Time) (netip.Prefix, netip.Addr, error) {
	var full []string
	var oldestIn netip.Prefix
	var oldest netip.Addr
	for _, c := range m.cidrs {
		if c.Addr().Is6() != v6 {
			continue
		}
		if a, ok := m.next(c, now); ok {
			return c, a, nil
		}
		if a, ok := m.oldest(c); ok && (!oldest.IsValid() || m.released[a].Before(m.released[oldest])) {
			oldestIn, oldest = c, a
		}
		full = append(full, c.String())
	}
	if oldest.IsValid() {
		return oldestIn, oldest, nil
	}
	used, size := m.count(v6)
	return netip.Prefix{}, netip.Addr{}, fmt.Errorf("pod CIDR %s of node %s is used up (%d of %d in use)",
		strings.Join(full, ", "), m.node, used, size)
}

// next walks the CIDR once around from the last address given. It stops after
// more steps than there are addresses that cannot be given, so a /64 costs no
// more than a /24.
func (m *IPAM) next(c netip.Prefix, now time.Time) (netip.Addr, bool) {
	a := m.last[c]
	if !a.IsValid() {
		a = overlay.Gateway(c)
	}
	for range len(m.used) + len(m.released) + 4 {
		if a = a.Next(); !c.Contains(a) {
			a = c.Masked().Addr()
		}
		at, held := m.released[a]
		held = held && now.Sub(at) < m.hold
		if _, used := m.used[a]; !used && !held && usable(c, a) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// oldest gives the address of the CIDR that was released first.
func (m *IPAM) oldest(c netip.Prefix) (best netip.Addr, ok bool) {
	for a, at := range m.released {
		if !c.Contains(a) {
			continue
		}
		first := m.released[best]
		if !ok || at.Before(first) || at.Equal(first) && a.Less(best) {
			best, ok = a, true
		}
	}
	return best, ok
}

// usable says whether a pod may have an address of the CIDR.
func usable(c netip.Prefix, a netip.Addr) bool {
	broadcast := a.Is4() && !c.Contains(a.Next())
	return c.Contains(a) && a != c.Masked().Addr() && a != overlay.Gateway(c) && !broadcast
}

// count gives how many addresses of a family's CIDRs are in use, and how many
// there are for pods, at most 2^62.
func (m *IPAM) count(v6 bool) (used int, size uint64) {
	for _, c := range m.cidrs {
		if c.Addr().Is6() != v6 {
			continue
		}
		size += capacity(c)
		for a := range m.used {
			if c.Contains(a) {
				used++
			}
		}
	}
	return used, size
}

func capacity(c netip.Prefix) uint64 {
	bits := min(c.Addr().BitLen()-c.Bits(), 62)
	reserved := uint64(2) // the network's and the gateway's
	if c.Addr().Is4() {
		reserved = 3
	}
	return max(uint64(1)<<bits, reserved) - reserved
}
