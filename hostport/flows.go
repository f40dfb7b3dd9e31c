package hostport

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/nft"
)

// Flows says which UDP flows to ports of the node the kernel must forget: those that
// lead to another pod than the rules do, or to none, as they began before there was
// one. A client that sends from the same port for ever keeps such a flow for ever. It
// lists and deletes none itself, and is not safe for use by several goroutines.
type Flows struct {
	now  map[front]netip.AddrPort
	gone map[Port]bool  // what has led to a pod and does no longer, until its family is Settled
	pods []netip.Prefix // to which something may have led that nobody knows, until then
	last int            // of the changes
}

// front is where clients send to: without an address, any of the node's.
type front struct {
	host netip.AddrPort
	v6   bool
}

// Begin tells, before the first Update, of the ports that an agent before this one has left,
// and where the node's pods are: it may have ended after it took a port away and before
// the port's flows were looked at.
func (x *Flows) Begin(ports []Port, pods []netip.Prefix) {
	x.Update(ports)
	x.pods = slices.Clone(pods)
}

// Update tells of the ports that are in force from now on, of both families.
func (x *Flows) Update(ports []Port) {
	before := x.now
	x.now, x.last = map[front]netip.AddrPort{}, x.last+1
	if x.gone == nil {
		x.gone = map[Port]bool{}
	}
	for _, p := range ports {
		if p.Protocol == cluster.UDP {
			x.now[front{p.Host, p.Pod.Addr().Is6()}] = p.Pod
		}
	}
	for f, pod := range before {
		x.gone[Port{cluster.UDP, f.host, pod}] = true
	}
	maps.DeleteFunc(x.gone, func(p Port, _ bool) bool { return x.now[front{p.Host, p.Pod.Addr().Is6()}] == p.Pod })
}

// Any says that there may be a flow of a family to forget.
func (x *Flows) Any(v6 bool) bool {
	for f := range x.now {
		if f.v6 == v6 {
			return true
		}
	}
	for p := range x.gone {
		if p.Pod.Addr().Is6() == v6 {
			return true
		}
	}
	return slices.ContainsFunc(x.pods, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
}

// Change is the number of the last change.
func (x *Flows) Change() int { return x.last }

// Begun says that no flows of an agent before this one are left to look at.
func (x *Flows) Begun() bool { return len(x.pods) == 0 }

// Settled says that all flows of a family were looked at since a change was in force. What
// is gone need not be known any more then, unless there is a later one.
func (x *Flows) Settled(change int, v6 bool) {
	if change == x.last {
		maps.DeleteFunc(x.gone, func(p Port, _ bool) bool { return p.Pod.Addr().Is6() == v6 })
		x.pods = slices.DeleteFunc(x.pods, func(p netip.Prefix) bool { return p.Addr().Is6() == v6 })
	}
}

// Stale says whether a flow must be forgotten: dst, an address of the node at which no
// Service answers, is where the client sends it, answer who answers.
func (x *Flows) Stale(dst, answer netip.AddrPort) bool {
	any := netip.AddrPortFrom(netip.Addr{}, dst.Port())
	for _, host := range []netip.AddrPort{dst, any} {
		if pod, is := x.now[front{host, dst.Addr().Is6()}]; is {
			return answer != pod
		}
	}
	if answer != dst && slices.ContainsFunc(x.pods, func(p netip.Prefix) bool { return p.Contains(answer.Addr()) }) {
		return true
	}
	return x.gone[Port{cluster.UDP, dst, answer}] || x.gone[Port{cluster.UDP, any, answer}]
}

// FromElements gives the ports of which the elements of a table's two maps tell.
func FromElements(f nft.Family, onAll, onOne []nft.Element) []Port {
	n := 4
	if f == nft.IPv6 {
		n = 16
	}
	var out []Port
	for _, e := range append(onAll, onOne...) {
		host, key := netip.Addr{}, e.Key
		if len(key) > 8 {
			host, key = addrOf(key[:n]), key[n:]
		}
		if len(key) == 8 && len(e.Data) == n+4 {
			out = append(out, Port{cluster.Protocol(key[0]), netip.AddrPortFrom(host, portOf(key[4:])), netip.AddrPortFrom(addrOf(e.Data[:n]), portOf(e.Data[n:]))})
		}
	}
	return out
}

func addrOf(b []byte) netip.Addr { a, _ := netip.AddrFromSlice(b); return a }

func portOf(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
