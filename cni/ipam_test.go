package cni

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

var t0 = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

func ipam(cidrs ...string) *IPAM {
	m := NewIPAM("n1", time.Minute)
	var prefixes []netip.Prefix
	for _, c := range cidrs {
		prefixes = append(prefixes, netip.MustParsePrefix(c))
	}
	m.SetCIDRs(prefixes)
	return m
}

// take gives the addresses as text, or the error's.
func take(m *IPAM, at time.Duration) string {
	addrs, _, err := m.Take(t0.Add(at))
	if err != nil {
		return err.Error()
	}
	return strings.Trim(fmt.Sprint(addrs), "[]")
}

func release(m *IPAM, at time.Duration, addrs string) {
	for a := range strings.SplitSeq(addrs, " ") {
		m.Release(t0.Add(at), netip.MustParseAddr(a))
	}
}

func expect(t *testing.T, have, want string) {
	t.Helper()
	if have != want {
		t.Errorf("have %s, want %s", have, want)
	}
}

func TestIPAM_families(t *testing.T) {
	m := ipam("10.1.2.0/24", "fd00::/64")
	addrs, gateways, err := m.Take(t0)
	expect(t, fmt.Sprint(addrs, gateways, err), "[10.1.2.2 fd00::2] [10.1.2.1 fd00::1] <nil>")
	m = ipam("fd00::/64")
	expect(t, take(m, 0), "fd00::2")
	expect(t, take(ipam(), 0), "node n1 has no pod CIDR")
}

func TestIPAM_sizes(t *testing.T) {
	for _, c := range []struct {
		cidr string
		size int
	}{
		{"10.1.2.0/24", 253}, {"10.1.2.0/29", 5}, {"10.1.2.0/30", 1}, {"10.1.2.0/31", 0}, {"10.1.2.0/32", 0},
		{"255.255.255.0/24", 253}, {"fd00::/120", 254}, {"fd00::/126", 2}, {"fd00::/127", 0}, {"fd00::/128", 0},
		{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120", 254},
	} {
		m := ipam(c.cidr)
		prefix := netip.MustParsePrefix(c.cidr)
		for i := range c.size {
			addrs, gateways, err := m.Take(t0)
			if err != nil {
				t.Fatalf("%s: address %d: %v", c.cidr, i, err)
			}
			if a := addrs[0]; !prefix.Contains(a) || a == prefix.Addr() || a == gateways[0] || a.Is4() && !prefix.Contains(a.Next()) {
				t.Errorf("%s: gave %s", c.cidr, a)
			}
		}
		expect(t, take(m, 0), fmt.Sprintf("pod CIDR %s of node n1 is used up (%d of %d in use)", c.cidr, c.size, c.size))
		expect(t, fmt.Sprint(m.Full()), fmt.Sprintf("pod CIDR %s of node n1 is used up (%d of %d in use)", c.cidr, c.size, c.size))
	}
}

// TestIPAM_reuse is about an address that was released: it comes last, and
// within the hold-back only when there is no other.
func TestIPAM_reuse(t *testing.T) {
	m := ipam("10.1.2.0/29") // .2 to .6
	expect(t, take(m, 0), "10.1.2.2")
	expect(t, take(m, 0), "10.1.2.3")
	release(m, time.Second, "10.1.2.2")
	expect(t, take(m, 2*time.Second), "10.1.2.4")
	release(m, 3*time.Second, "10.1.2.4")
	expect(t, take(m, 4*time.Second), "10.1.2.5")
	expect(t, take(m, 4*time.Second), "10.1.2.6")
	// All others are in use: the one that was released first.
	expect(t, take(m, 5*time.Second), "10.1.2.2")
	// After the hold-back, in the order of the walk.
	release(m, 6*time.Second, "10.1.2.3")
	expect(t, take(m, 70*time.Second), "10.1.2.3")
	expect(t, take(m, 70*time.Second), "10.1.2.4")
	expect(t, take(m, 70*time.Second), "pod CIDR 10.1.2.0/29 of node n1 is used up (5 of 5 in use)")
	release(m, 71*time.Second, "10.1.2.99") // never given
	expect(t, take(m, 200*time.Second), "pod CIDR 10.1.2.0/29 of node n1 is used up (5 of 5 in use)")
}

// TestIPAM_allOrNothing: a family that is used up takes nothing of the other.
func TestIPAM_allOrNothing(t *testing.T) {
	m := ipam("fd00::/64", "10.1.2.0/30")
	expect(t, take(m, 0), "fd00::2 10.1.2.2")
	const full = "pod CIDR 10.1.2.0/30 of node n1 is used up (1 of 1 in use)"
	expect(t, take(m, 0), full)
	expect(t, take(m, 0), full)
	release(m, 0, "10.1.2.2")
	expect(t, take(m, time.Second), "fd00::3 10.1.2.2")
}

func TestIPAM_CIDRchanges(t *testing.T) {
	m := ipam("10.1.2.0/30", "10.1.9.0/30")
	expect(t, take(m, 0), "10.1.2.2")
	expect(t, take(m, 0), "10.1.9.2")
	expect(t, take(m, 0), "pod CIDR 10.1.2.0/30, 10.1.9.0/30 of node n1 is used up (2 of 2 in use)")
	m.SetCIDRs([]netip.Prefix{netip.MustParsePrefix("10.7.0.0/24")})
	expect(t, take(m, 0), "10.7.0.2")
	m.SetCIDRs([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")})
	expect(t, take(m, 0), "10.1.0.2")
	m.last[m.cidrs[0]] = netip.MustParseAddr("10.1.2.1")
	expect(t, take(m, 0), "10.1.2.3") // .2 is still the first pod's
}

// BenchmarkIPAM takes and releases in a /64 with 250 pods.
func BenchmarkIPAM(b *testing.B) {
	m := ipam("fd00::/64")
	for range 250 {
		take(m, 0)
	}
	for i := 0; b.Loop(); i++ {
		at := t0.Add(time.Duration(i) * time.Second)
		addrs, _, err := m.Take(at)
		if err != nil {
			b.Fatal(err)
		}
		m.Release(at, addrs...)
	}
}
