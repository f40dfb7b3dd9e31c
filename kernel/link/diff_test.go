package link

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func golden(t *testing.T, got string, want ...string) {
	t.Helper()
	if d := cmp.Diff(strings.Join(want, "\n")+"\n", got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// small is a State with one object of each kind.
func small() State {
	s := NewState()
	s.Links["pl-vxlan"] = Link{Kind: VXLAN, MTU: 1450, MAC: mac(1), VXLAN: VXLANSpec{ID: 1, Port: 8472, Local: addr("192.0.2.1"), Device: "up0"}}
	s.Sysctls["net/ipv4/ip_forward"] = "1"
	s.Sysctls["net/ipv4/conf/pl-vxlan/rp_filter"] = "2"
	s.Addrs[Addr{"pl-vxlan", pfx("10.244.0.1/32")}] = struct{}{}
	s.Neighs[NeighKey{"pl-vxlan", addr("10.244.2.0")}] = mac(2)
	s.FDB[FDBKey{"pl-vxlan", mac(2)}] = addr("192.0.2.2")
	s.Routes[RouteKey{pfx("10.244.2.0/24")}] = Route{Via: addr("10.244.2.0"), Dev: "pl-vxlan", Src: addr("10.244.0.1"), OnLink: true}
	s.Routes[RouteKey{pfx("10.244.3.0/24")}] = Route{Via: addr("192.0.2.3"), Dev: "up0"}
	return s
}

const smallVXLAN = "mtu 1450 address 02:00:00:00:00:01 type vxlan id 1 local 192.0.2.1 dev up0 dstport 8472 nolearning"

func TestState_text(t *testing.T) {
	golden(t, small().String(),
		"link pl-vxlan "+smallVXLAN,
		"sysctl net/ipv4/conf/pl-vxlan/rp_filter=2",
		"sysctl net/ipv4/ip_forward=1",
		"addr 10.244.0.1/32 dev pl-vxlan",
		"neigh 10.244.2.0 lladdr 02:00:00:00:00:02 dev pl-vxlan nud permanent protocol 112",
		"fdb 02:00:00:00:00:02 dev pl-vxlan dst 192.0.2.2 self permanent",
		"route 10.244.2.0/24 via 10.244.2.0 dev pl-vxlan proto 112 src 10.244.0.1 onlink",
		"route 10.244.3.0/24 via 192.0.2.3 dev up0 proto 112")
}

var smallOnLink = []string{
	"sysctl -w net/ipv4/conf/pl-vxlan/rp_filter=2",
	"ip address replace 10.244.0.1/32 dev pl-vxlan",
	"ip neigh replace 10.244.2.0 lladdr 02:00:00:00:00:02 dev pl-vxlan nud permanent protocol 112",
	"bridge fdb replace 02:00:00:00:00:02 dev pl-vxlan dst 192.0.2.2 self permanent",
	"ip route add 10.244.2.0/24 via 10.244.2.0 dev pl-vxlan proto 112 src 10.244.0.1 onlink",
}

func TestDiff_fromNothing(t *testing.T) {
	want := append([]string{"ip link add pl-vxlan group 112 up " + smallVXLAN, smallOnLink[0],
		"sysctl -w net/ipv4/ip_forward=1"}, smallOnLink[1:]...)
	golden(t, Diff(NewState(), small()).String(), append(want, "ip route add 10.244.3.0/24 via 192.0.2.3 dev up0 proto 112")...)
}

// TestDiff_toNothing leaves to the kernel what goes with its link.
func TestDiff_toNothing(t *testing.T) {
	golden(t, Diff(small(), NewState()).String(),
		"ip route del 10.244.3.0/24 via 192.0.2.3 dev up0 proto 112",
		"ip link del pl-vxlan")
}

func TestDiff_peerGone(t *testing.T) {
	want := small()
	delete(want.Neighs, NeighKey{"pl-vxlan", addr("10.244.2.0")})
	delete(want.FDB, FDBKey{"pl-vxlan", mac(2)})
	delete(want.Routes, RouteKey{pfx("10.244.2.0/24")})
	golden(t, Diff(small(), want).String(),
		"ip route del 10.244.2.0/24 via 10.244.2.0 dev pl-vxlan proto 112 src 10.244.0.1 onlink",
		"bridge fdb del 02:00:00:00:00:02 dev pl-vxlan dst 192.0.2.2 self permanent",
		"ip neigh del 10.244.2.0 dev pl-vxlan")
}

// TestDiff_remade: what cannot be changed on a link takes everything on it along.
func TestDiff_remade(t *testing.T) {
	have := small()
	l := have.Links["pl-vxlan"]
	l.VXLAN.ID = 9
	have.Links["pl-vxlan"] = l
	golden(t, Diff(have, small()).String(),
		append([]string{"ip link del pl-vxlan", "ip link add pl-vxlan group 112 up " + smallVXLAN}, smallOnLink...)...)
}

// TestDiff_newMAC: the kernel flushes a link's neighbours with its address.
func TestDiff_newMAC(t *testing.T) {
	have := small()
	l := have.Links["pl-vxlan"]
	l.MAC, l.MTU, l.Down = mac(9), 1400, true
	have.Links["pl-vxlan"] = l
	golden(t, Diff(have, small()).String(), "ip link set pl-vxlan mtu 1450 address 02:00:00:00:00:01 up", smallOnLink[2])
}

// TestDiff_directToVXLAN never leaves a peer without a route: it is replaced in
// one step, after what it needs.
func TestDiff_directToVXLAN(t *testing.T) {
	have := small()
	key := RouteKey{pfx("10.244.2.0/24")}
	have.Routes[key] = Route{Via: addr("192.0.2.2"), Dev: "up0"}
	delete(have.Neighs, NeighKey{"pl-vxlan", addr("10.244.2.0")})
	delete(have.FDB, FDBKey{"pl-vxlan", mac(2)})
	golden(t, Diff(have, small()).String(), smallOnLink[2], smallOnLink[3],
		strings.Replace(smallOnLink[4], "add", "replace", 1))
	gone := small()
	delete(gone.Links, "pl-vxlan")
	gone.Routes[key] = have.Routes[key]
	clear(gone.Addrs)
	clear(gone.Neighs)
	clear(gone.FDB)
	delete(gone.Sysctls, "net/ipv4/conf/pl-vxlan/rp_filter")
	golden(t, Diff(small(), gone).String(),
		"ip route replace 10.244.2.0/24 via 192.0.2.2 dev up0 proto 112",
		"ip link del pl-vxlan")
}

func TestDiff_sameIsEmpty(t *testing.T) {
	if ops := Diff(small(), small()); len(ops) != 0 {
		t.Errorf("got\n%s", ops)
	}
}
