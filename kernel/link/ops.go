package link

import (
	"fmt"
	"net/netip"
	"strings"
)

// Verb is what an Op does to its object.
type Verb uint8

// The verbs.
const (
	Add    Verb = iota // the object is not there
	Change             // it is there, and different
	Delete
)

// Ops are changes in the order in which they are to be made.
type Ops []Op

// Op is one change of one kernel object.
type Op struct {
	Verb   Verb
	Object Object
}

// Object is a kernel object with all that an Op needs of it: one of LinkObject,
// Addr, NeighObject, FDBObject, RouteObject and SysctlObject.
type Object interface {
	// command gives the words of ip(8), bridge(8) or sysctl(8) that do it.
	command(Verb) string
	// dev is the link without which the object cannot be, or "".
	dev() string
}

// LinkObject is a link. Have is the link as it is, where Verb is Change.
type LinkObject struct {
	Name string
	Link
	Have Link
}

// NeighObject is a permanent neighbour.
type NeighObject struct {
	NeighKey
	MAC MAC
}

// FDBObject is an entry of a VXLAN link's forwarding database.
type FDBObject struct {
	FDBKey
	Dst netip.Addr
}

// RouteObject is a route of the main table.
type RouteObject struct {
	RouteKey
	Route
}

// SysctlObject is a kernel parameter, by its path below /proc/sys.
type SysctlObject struct{ Path, Value string }

// String gives the command that would do the same by hand.
func (o Op) String() string { return o.Object.command(o.Verb) }

// String gives a line for each operation.
func (ops Ops) String() string {
	var b strings.Builder
	for _, o := range ops {
		b.WriteString(o.String())
		b.WriteByte('\n')
	}
	return b.String()
}

func (l LinkObject) dev() string   { return l.Name }
func (a Addr) dev() string         { return a.Dev }
func (n NeighObject) dev() string  { return n.Dev }
func (f FDBObject) dev() string    { return f.Dev }
func (r RouteObject) dev() string  { return r.Dev }
func (s SysctlObject) dev() string { return sysctlDev(s.Path) }

// sysctlDev gives the link that a path such as net/ipv4/conf/eth0/rp_filter
// belongs to, or "".
func sysctlDev(path string) string {
	parts := strings.Split(path, "/")
	if len(parts) != 5 || parts[2] != "conf" || parts[3] == "all" || parts[3] == "default" {
		return ""
	}
	return parts[3]
}

func (l LinkObject) command(v Verb) string {
	switch v {
	case Add:
		s := fmt.Sprintf("ip link add %s group %d up %s", l.Name, Group, l.words())
		if l.Shape != (Shape{}) {
			s += fmt.Sprintf("; tc qdisc replace dev %s root tbf rate %dbps burst %d latency 25ms", l.Name, l.Shape.Rate, l.Shape.Burst)
		}
		return s
	case Delete:
		return "ip link del " + l.Name
	}
	s := "ip link set " + l.Name
	if l.SoftChecksum != l.Have.SoftChecksum {
		s = fmt.Sprintf("ethtool -K %s tx-checksum-ip-generic %s; ", l.Name, onOff[!l.SoftChecksum]) + s
	}
	if l.Have.MTU != l.MTU {
		s += fmt.Sprintf(" mtu %d", l.MTU)
	}
	if l.changesMAC() {
		s += " address " + l.MAC.String()
	}
	if l.Have.Down {
		s += " up"
	}
	if l.Shape != l.Have.Shape {
		s += fmt.Sprintf("; tc qdisc replace dev %s root tbf rate %dbps burst %d latency 25ms", l.Name, l.Shape.Rate, l.Shape.Burst)
	}
	if l.IngressTo != l.Have.IngressTo {
		s += fmt.Sprintf("; tc filter replace dev %s ingress u32 match u32 0 0 action mirred egress redirect dev %s", l.Name, l.IngressTo)
	}
	return s
}

var onOff = map[bool]string{true: "on", false: "off"}

func (l LinkObject) changesMAC() bool { return l.MAC != MAC{} && l.MAC != l.Have.MAC }

func (l Link) words() string {
	s := fmt.Sprintf("mtu %d ", l.MTU)
	if l.MAC != (MAC{}) {
		s += fmt.Sprintf("address %s ", l.MAC)
	}
	s += fmt.Sprintf("type %s", l.Kind)
	if l.Kind != VXLAN {
		return s
	}
	s += fmt.Sprintf(" id %d local %s ", l.VXLAN.ID, l.VXLAN.Local)
	if l.VXLAN.Device != "" {
		s += "dev " + l.VXLAN.Device + " "
	}
	s += fmt.Sprintf("dstport %d ", l.VXLAN.Port)
	if !l.VXLAN.Learning {
		s += "no"
	}
	return s + "learning"
}

func (a Addr) command(v Verb) string {
	if v == Delete {
		return fmt.Sprintf("ip address del %s dev %s", a.Prefix, a.Dev)
	}
	s := fmt.Sprintf("ip address replace %s dev %s", a.Prefix, a.Dev)
	if a.Prefix.Addr().Is6() {
		s += " nodad noprefixroute"
	}
	return s
}

func (n NeighObject) command(v Verb) string {
	if v == Delete {
		return fmt.Sprintf("ip neigh del %s dev %s", n.Addr, n.Dev)
	}
	return "ip neigh replace " + n.words()
}

func (n NeighObject) words() string {
	return fmt.Sprintf("%s lladdr %s dev %s nud permanent protocol %d", n.Addr, n.MAC, n.Dev, Protocol)
}

func (f FDBObject) command(v Verb) string {
	verb := "replace"
	if v == Delete {
		verb = "del"
	}
	return fmt.Sprintf("bridge fdb %s %s", verb, f.words())
}

func (f FDBObject) words() string {
	return fmt.Sprintf("%s dev %s dst %s self permanent", f.MAC, f.Dev, f.Dst)
}

func (r RouteObject) command(v Verb) string {
	verb := map[Verb]string{Add: "add", Change: "replace", Delete: "del"}[v]
	return fmt.Sprintf("ip %sroute %s %s", flag6(r.Dst.Addr()), verb, r.words())
}

// flag6 makes ip(8) take "default" and unreachable prefixes for IPv6.
func flag6(a netip.Addr) string {
	if a.Is6() {
		return "-6 "
	}
	return ""
}

func (r RouteObject) words() string {
	s := r.Dst.String()
	if r.Unreachable {
		return fmt.Sprintf("unreachable %s proto %d", s, Protocol)
	}
	if r.Via.IsValid() {
		s += fmt.Sprintf(" via %s", r.Via)
	}
	s += fmt.Sprintf(" dev %s proto %d", r.Dev, Protocol)
	if r.Src.IsValid() {
		s += fmt.Sprintf(" src %s", r.Src)
	}
	if r.MTU != 0 {
		s += fmt.Sprintf(" mtu %d", r.MTU)
	}
	if r.OnLink {
		s += " onlink"
	}
	return s
}

func (s SysctlObject) command(Verb) string { return fmt.Sprintf("sysctl -w %s=%s", s.Path, s.Value) }
