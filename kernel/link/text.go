package link

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
)

// String gives the State as sorted lines in the words of ip(8), bridge(8) and
// sysctl(8), each after the name of what it is: link, sysctl, addr, neigh, fdb or
// route.
func (s State) String() string {
	var b strings.Builder
	lines(&b, "link", s.Links, cmp.Compare[string], func(name string, l Link) string {
		if l.Down {
			return name + " " + l.words() + " down"
		}
		return name + " " + l.words()
	})
	lines(&b, "sysctl", s.Sysctls, cmp.Compare[string], func(path, v string) string { return path + "=" + v })
	lines(&b, "addr", s.Addrs, compareAddr, func(a Addr, _ struct{}) string {
		return fmt.Sprintf("%s dev %s", a.Prefix, a.Dev)
	})
	lines(&b, "neigh", s.Neighs, compareNeigh, func(k NeighKey, m MAC) string { return NeighObject{k, m}.words() })
	lines(&b, "fdb", s.FDB, compareFDB, func(k FDBKey, a netip.Addr) string { return FDBObject{k, a}.words() })
	lines(&b, "route", s.Routes, compareRoute, func(k RouteKey, r Route) string { return RouteObject{k, r}.words() })
	return b.String()
}

func lines[K comparable, V any](b *strings.Builder, what string, m map[K]V, order func(a, b K) int, line func(K, V) string) {
	for _, k := range sortedKeys(m, order) {
		fmt.Fprintf(b, "%s %s\n", what, line(k, m[k]))
	}
}
