// Package convert makes the objects of package cluster out of those of the
// Kubernetes API, with the API's defaults applied. It neither reads nor keeps
// anything: what is wrong with an object becomes a cluster.Problem of that object,
// which stays as usable as it can be.
package convert

import (
	"fmt"
	"net/netip"
	"slices"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	netutils "k8s.io/utils/net"

	"github.com/podlane/podlane/cluster"
)

// problems collects what is wrong with one object.
type problems struct {
	kind string
	key  cluster.Key
	list []cluster.Problem
}

func (p *problems) add(field, format string, args ...any) {
	p.list = append(p.list, cluster.Problem{Kind: p.kind, Key: p.key, Field: field, Err: fmt.Sprintf(format, args...)})
}

// addr parses an address as the API does: leading zeros are decimal, and a
// mapped IPv4 address is an IPv4 address (service-proxy rule, TestBadIPs of
// Kubernetes).
func (p *problems) addr(field, s string) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(s))
	if !ok {
		p.add(field, "%q is not an IP address: it is left out", s)
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// prefix parses a CIDR as the API does, and masks it.
func (p *problems) prefix(field, s string) (netip.Prefix, bool) {
	_, n, err := netutils.ParseCIDRSloppy(s)
	if err != nil {
		p.add(field, "%q is not a CIDR such as 10.244.1.0/24: it is left out", s)
		return netip.Prefix{}, false
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a, bits), true
}

// port gives a port number that is a number between 1 and 65535.
func (p *problems) port(field string, n int32) (uint16, bool) {
	if n < 1 || n > 65535 {
		p.add(field, "%d is not between 1 and 65535: the port is left out", n)
		return 0, false
	}
	return uint16(n), true
}

// protocol gives the number of a protocol; the API's default is TCP.
func (p *problems) protocol(field string, name corev1.Protocol) (cluster.Protocol, bool) {
	switch name {
	case corev1.ProtocolTCP, "":
		return cluster.TCP, true
	case corev1.ProtocolUDP:
		return cluster.UDP, true
	case corev1.ProtocolSCTP:
		return cluster.SCTP, true
	}
	p.add(field, "%q is not one of TCP, UDP and SCTP: the port is left out", name)
	return 0, false
}

// portName accepts what the API accepts: a DNS label, or nothing.
func (p *problems) portName(field, name string) (string, bool) {
	if name != "" && len(validation.IsDNS1123Label(name)) > 0 {
		p.add(field, "%q is not a name of lower case letters, digits and '-': the port is left out", name)
		return "", false
	}
	return intern(name), true
}

// onePerFamily keeps the first address of each family.
func (p *problems) onePerFamily(field func(int) string, of []string) []netip.Addr {
	var kept []netip.Addr
	for i, s := range of {
		a, ok := p.addr(field(i), s)
		if !ok {
			continue
		}
		if slices.ContainsFunc(kept, func(k netip.Addr) bool { return k.Is4() == a.Is4() }) {
			p.add(field(i), "%s is a second address of its family: it is left out", a)
			continue
		}
		kept = append(kept, a)
	}
	return kept
}

func indexed(format string) func(int) string {
	return func(i int) string { return fmt.Sprintf(format, i) }
}

// intern makes equal strings share memory: a cluster has few node names and
// zones, but names them in each endpoint.
func intern(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// value gives what p points to, or the zero value, which is the API's default.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
