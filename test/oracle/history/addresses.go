package history

import (
	"fmt"
	"net/netip"
)

// The names and addresses of the node and what is around it.
const (
	Node      = "node-a"
	OtherNode = "node-b"
	Namespace = "d"
)

// The addresses of the node: the first ones are in its Node object, the second ones
// not.
var (
	NodeAddrs  = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("fd00:192::1")}
	OtherAddrs = []netip.Addr{netip.MustParseAddr("192.0.3.1"), netip.MustParseAddr("fd00:193::1")}
	PodRanges  = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}
)

// The ranges of other clients. A load balancer's source ranges may allow the pods,
// the node and Allowed, never Blocked.
var (
	RemoteRanges = []netip.Prefix{netip.MustParsePrefix("10.245.0.0/16"), netip.MustParsePrefix("fd00:245::/64")}
	Allowed      = []netip.Prefix{netip.MustParsePrefix("100.80.0.0/16"), netip.MustParsePrefix("fd00:80::/64")}
	Blocked      = []netip.Prefix{netip.MustParsePrefix("100.81.0.0/16"), netip.MustParsePrefix("fd00:81::/64")}
)

const (
	endpointPods = 8 // the first pods, 10, 11, ..., may be endpoints
	clientPods   = 32
	firstClient  = 100
)

// EndpointPods are the node's pods that may be endpoints.
func EndpointPods(v6 bool) []netip.Addr { return nth(PodRanges[index(v6)], 10, endpointPods) }

// ClientPods are the node's other pods.
func ClientPods(v6 bool) []netip.Addr { return nth(PodRanges[index(v6)], firstClient, clientPods) }

func nth(p netip.Prefix, first, n int) []netip.Addr {
	var out []netip.Addr
	for i := range n {
		out = append(out, Nth(p, uint32(first+i)))
	}
	return out
}

// Nth gives the n-th address of a range.
func Nth(p netip.Prefix, n uint32) netip.Addr {
	b := p.Addr().AsSlice()
	for i := len(b) - 1; n > 0; i-- {
		b[i] += byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func index(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

// sloppy writes an IPv4 address or prefix with leading zeros, as old objects of the
// API may have them.
func sloppy(s string) string {
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
		return sloppy(p.Addr().String()) + fmt.Sprintf("/%03d", p.Bits())
	}
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return s
	}
	b := a.As4()
	return fmt.Sprintf("%03d.%03d.%d.%03d", b[0], b[1], b[2], b[3])
}

// canonical gives an address as it is written today.
func canonical(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.String()
	}
	return ""
}
