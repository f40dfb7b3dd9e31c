package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podlane/podlane/internal/nettest"
)

// node makes a namespace with an underlay link that has an address of each
// family, and a Handle on it.
func node(t testing.TB) *Handle {
	nettest.New(t)
	nettest.Run(t, "ip", "link", "add", "up0", "mtu", "1500", "type", "veth", "peer", "name", "up1")
	nettest.Run(t, "ip", "link", "set", "up0", "up")
	nettest.Run(t, "ip", "link", "set", "up1", "up")
	nettest.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
	nettest.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "up0", "nodad")
	return open(t)
}

func open(t testing.TB) *Handle {
	h, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

var (
	pfx  = netip.MustParsePrefix
	addr = netip.MustParseAddr
)

func mac(last byte) MAC { return MAC{2, 0, 0, 0, 0, last} }

// vtep is a State with one VXLAN link and n peers.
func vtep(peers ...int) State {
	s := NewState()
	s.Links["pl-vxlan"] = Link{Kind: VXLAN, MTU: 1450, MAC: mac(1), VXLAN: VXLANSpec{
		ID: 1, Port: 8472, Local: addr("192.0.2.1"), Device: "up0"}}
	s.Addrs[Addr{"pl-vxlan", pfx("10.244.0.1/32")}] = struct{}{}
	s.Addrs[Addr{"pl-vxlan", pfx("fd00:244::1/128")}] = struct{}{}
	s.Sysctls["net/ipv4/ip_forward"] = "1"
	s.Sysctls["net/ipv4/conf/pl-vxlan/rp_filter"] = "2"
	s.Routes[RouteKey{pfx("10.244.0.0/24")}] = Route{Unreachable: true}
	s.Routes[RouteKey{pfx("fd00:244::/64")}] = Route{Unreachable: true}
	for _, i := range peers {
		m := mac(byte(100 + i))
		s.FDB[FDBKey{"pl-vxlan", m}] = addr(fmt.Sprintf("192.0.2.%d", 100+i))
		for dst, r := range map[string]Route{
			fmt.Sprintf("10.244.%d.0/24", i):     {Via: addr(fmt.Sprintf("10.244.%d.0", i)), Src: addr("10.244.0.1")},
			fmt.Sprintf("fd00:244:0:%d::/64", i): {Via: addr(fmt.Sprintf("fe80::%d", i)), Src: addr("fd00:244::1")},
		} {
			r.Dev, r.OnLink = "pl-vxlan", true
			s.Neighs[NeighKey{"pl-vxlan", r.Via}] = m
			s.Routes[RouteKey{pfx(dst)}] = r
		}
	}
	return s
}

// drift gives what separates the kernel from want.
func drift(t testing.TB, h *Handle, want State) Ops {
	t.Helper()
	return Diff(read(t, h, want), want)
}

func read(t testing.TB, h *Handle, want State) State {
	t.Helper()
	have, err := h.Read(sortedKeys(want.Sysctls, strings.Compare)...)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

// reach applies the difference and demands that none is left.
func reach(t testing.TB, h *Handle, want State) {
	t.Helper()
	ops := drift(t, h, want)
	if err := h.Apply(ops); err != nil {
		t.Fatalf("apply:\n%s\n%v", ops, err)
	}
	if left := drift(t, h, want); len(left) != 0 {
		t.Fatalf("left after apply of\n%sis\n%sof\n%s", ops, left, want)
	}
	if d := cmp.Diff(want.String(), read(t, h, want).String()); d != "" {
		t.Fatalf("read is not what was applied (-want +read):\n%s", d)
	}
}

func TestApply_readBack(t *testing.T) {
	h := node(t)
	want := vtep(1, 2, 3)
	reach(t, h, want)
	if err := h.Apply(Diff(NewState(), want)); err != nil {
		t.Errorf("the same operations again: %v", err)
	}
	reach(t, h, want)
	reach(t, h, vtep(2))
	moved := vtep() // a peer's pod CIDRs become our own
	moved.Routes[RouteKey{pfx("10.244.2.0/24")}] = Route{Unreachable: true}
	moved.Routes[RouteKey{pfx("fd00:244:0:2::/64")}] = Route{Unreachable: true}
	reach(t, h, moved)
	reach(t, h, vtep(2))
	reach(t, h, NewState())
}

// TestOps_sameAsByHand runs what Ops print, with the tools whose words they are.
func TestOps_sameAsByHand(t *testing.T) {
	h := node(t)
	want := vtep(1, 2)
	want.Routes[RouteKey{pfx("10.99.0.0/24")}] = Route{Via: addr("192.0.2.9"), Dev: "up0", MTU: 1400}
	byHand(t, Diff(NewState(), want))
	if left := drift(t, h, want); len(left) != 0 {
		t.Errorf("the printed commands leave:\n%s", left)
	}
	next := vtep(2, 3)
	l := next.Links["pl-vxlan"]
	l.MTU, l.MAC = 1400, mac(9)
	next.Links["pl-vxlan"] = l
	byHand(t, drift(t, h, next))
	if left := drift(t, h, next); len(left) != 0 {
		t.Errorf("the printed commands leave:\n%s", left)
	}
}

func byHand(t *testing.T, ops Ops) {
	t.Helper()
	for line := range strings.Lines(ops.String()) {
		words := strings.Fields(line)
		nettest.Run(t, words[0], words[1:]...)
	}
}

// TestApply_foreign has foreign state of every kind beside ours, in our way where
// it can be; all of it must survive.
func TestApply_foreign(t *testing.T) {
	h := node(t)
	for _, c := range []string{
		"link add plip0 type bridge", // a foreign name that begins like ours
		"link set plip0 up",
		"addr add 198.51.100.1/24 dev plip0",
		"neigh add 198.51.100.7 lladdr 02:00:00:00:00:07 dev plip0 nud permanent",
		"route add 203.0.113.0/24 dev plip0 proto static",
		"route add 10.244.2.0/24 via 192.0.2.77 proto static", // in our way
		"-6 route add fd00:244:0:2::/64 via 2001:db8::77 proto static",
		"route add 203.0.114.0/24 dev up0 proto 112 table 99", // another table
	} {
		nettest.Run(t, "ip", strings.Fields(c)...)
	}
	before := foreignText(t)
	err := h.Apply(drift(t, h, vtep(1, 2, 3)))
	if !errors.Is(err, ErrRouteInUse) || strings.Count(err.Error(), ErrRouteInUse.Error()) != 2 ||
		!strings.Contains(err.Error(), "10.244.2.0/24") || !strings.Contains(err.Error(), "fd00:244:0:2::/64") {
		t.Errorf("two foreign routes in the way: %v", err)
	}
	left := drift(t, h, vtep(1, 2, 3))
	if len(left) != 2 {
		t.Errorf("one foreign route in the way kept back more:\n%s", left)
	}
	if err := h.Apply(drift(t, h, NewState())); err != nil {
		t.Error(err)
	}
	if d := cmp.Diff(before, foreignText(t)); d != "" {
		t.Errorf("foreign state changed (-before +after):\n%s", d)
	}
}

// foreignText leaves out what the kernel adds by itself, up to seconds later.
func foreignText(t *testing.T) string {
	var b strings.Builder
	for _, c := range []string{"-o addr", "neigh show nud permanent", "route show table all", "-6 route show table all"} {
		for line := range strings.Lines(nettest.Run(t, "ip", strings.Fields(c)...)) {
			if !strings.Contains(line, "fe80::") && !strings.Contains(line, "ff00::") && !strings.Contains(line, "table local") {
				b.WriteString(line)
			}
		}
	}
	return b.String()
}

func TestApply_nameInUse(t *testing.T) {
	h := node(t)
	nettest.Run(t, "ip", "link", "add", "pl-vxlan", "type", "bridge")
	err := h.Apply(drift(t, h, vtep(1)))
	if !errors.Is(err, ErrNameInUse) || !strings.Contains(err.Error(), `kind "bridge"`) {
		t.Errorf("got %v", err)
	}
	if n := strings.Count(err.Error(), "\n"); n != 0 {
		t.Errorf("%d more errors of what depends on the link: %v", n, err)
	}
	if !strings.Contains(nettest.Run(t, "ip", "-d", "link", "show", "pl-vxlan"), "bridge") {
		t.Error("the foreign link was touched")
	}
	if err := h.DeletePod("pl-vxlan"); !errors.Is(err, ErrNameInUse) {
		t.Errorf("delete of a foreign link: %v", err)
	}
}

func TestApply_missingFeature(t *testing.T) {
	h := node(t)
	want := NewState()
	want.Links["pl-x"] = Link{Kind: "nosuchkind", MTU: 1400}
	err := h.Apply(Diff(NewState(), want))
	if !errors.Is(err, ErrNoFeature) || !strings.Contains(err.Error(), "CONFIG_NOSUCHKIND") {
		t.Errorf("got %v", err)
	}
}

func TestApply_sameVNI(t *testing.T) {
	h := node(t)
	nettest.Run(t, "ip", strings.Fields("link add flannel.1 type vxlan id 1 dstport 8472 local 192.0.2.1 dev up0 nolearning")...)
	err := h.Apply(drift(t, h, vtep(1)))
	if err == nil || !strings.Contains(err.Error(), "another VXLAN link flannel.1 has VNI 1 on UDP port 8472") {
		t.Errorf("got %v", err)
	}
}

func TestApply_portInUse(t *testing.T) {
	h := node(t)
	conn := listenUDP(t, 8472)
	defer conn.Close()
	err := h.Apply(drift(t, h, vtep(1)))
	if err == nil || !strings.Contains(err.Error(), "UDP port 8472 is in use") {
		t.Errorf("got %v", err)
	}
	if s := read(t, h, NewState()); len(s.Links) != 0 {
		t.Errorf("a half-made link is left:\n%s", s)
	}
}

// TestApply_repairs breaks one thing after the other by hand.
func TestApply_repairs(t *testing.T) {
	for _, c := range []string{
		"ip link set pl-vxlan down; ip link set pl-vxlan up",
		"ip link set pl-vxlan down",
		"ip link del pl-vxlan",
		"ip link del pl-vxlan; ip link add pl-vxlan group 112 mtu 1450 type vxlan id 1 dstport 8472 local 192.0.2.1 dev up0 learning",
		"ip link del pl-vxlan; ip link add pl-vxlan group 112 mtu 1450 type vxlan id 7 dstport 8472 local 192.0.2.1 dev up0 nolearning",
		"ip link set pl-vxlan address 02:00:00:00:00:99",
		"ip link set pl-vxlan mtu 1300",
		"ip link set up0 down; ip link set up0 up",
		"ip addr add 192.168.1.125/24 dev pl-vxlan", // a DHCP client
		"ip addr del 10.244.0.1/32 dev pl-vxlan",
		"ip -6 addr flush dev pl-vxlan",
		"ip neigh flush dev pl-vxlan nud permanent",
		"ip neigh replace 10.244.1.0 lladdr 02:00:00:00:00:99 dev pl-vxlan nud reachable",
		"ip route flush proto 112",
		"ip -6 route flush proto 112",
		"ip route replace 10.244.1.0/24 via 192.0.2.200 proto 112",
		"ip route add 10.244.77.0/24 via 192.0.2.200 proto 112",
		"ip route replace 10.244.1.0/24 via 10.244.1.0 dev pl-vxlan onlink proto 112 mtu 1000 src 10.244.0.1",
		"bridge fdb replace 02:00:00:00:00:65 dev pl-vxlan dst 192.0.2.66 self permanent",
		"bridge fdb replace 02:00:00:00:00:65 dev pl-vxlan dst 192.0.2.101 port 99 self permanent",
		"bridge fdb append 00:00:00:00:00:00 dev pl-vxlan dst 192.0.2.66 self permanent",
		"bridge fdb del 02:00:00:00:00:65 dev pl-vxlan",
		"echo 0 > /proc/sys/net/ipv4/ip_forward",
		"echo 1 > /proc/sys/net/ipv4/conf/pl-vxlan/rp_filter",
	} {
		t.Run(c, func(t *testing.T) {
			h := node(t)
			want := vtep(1, 2)
			want.Routes[RouteKey{pfx("10.99.0.0/24")}] = Route{Via: addr("192.0.2.9"), Dev: "up0"}
			reach(t, h, want)
			nettest.Run(t, "sh", "-ec", c)
			if len(drift(t, h, want)) == 0 {
				t.Error("not noticed")
			}
			reach(t, h, want)
		})
	}
}

// TestApply_diffIsWhole goes through random States; after each the kernel must
// have what applying it alone would give. reach compares with the State itself.
func TestApply_diffIsWhole(t *testing.T) {
	h := node(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		reach(t, h, randomState(rnd))
	}
}

func randomState(rnd *rand.Rand) State {
	if rnd.IntN(8) == 0 {
		return NewState()
	}
	var peers []int
	for i := range 6 {
		if rnd.IntN(2) == 0 {
			peers = append(peers, i+1)
		}
	}
	s := vtep(peers...)
	l := s.Links["pl-vxlan"]
	l.MTU -= 10 * rnd.IntN(3)
	l.MAC = mac(byte(1 + rnd.IntN(2)))
	l.VXLAN.ID = uint32(1 + rnd.IntN(2))
	if rnd.IntN(3) == 0 {
		l.VXLAN.Local = addr("2001:db8::1")
		l.MTU -= 20
		for k := range s.FDB {
			s.FDB[k] = addr(fmt.Sprintf("2001:db8::%x", k.MAC[5]))
		}
	}
	s.Links["pl-vxlan"] = l
	for k, r := range s.Routes {
		if !r.OnLink || rnd.IntN(3) != 0 {
			continue
		}
		delete(s.Neighs, NeighKey{"pl-vxlan", r.Via}) // this one goes directly
		via := "192.0.2.9"
		if k.Dst.Addr().Is6() {
			via = "2001:db8::9"
		}
		s.Routes[k] = Route{Via: addr(via), Dev: "up0", MTU: 1400 * rnd.IntN(2)}
	}
	return s
}

func TestReadUnderlay(t *testing.T) {
	h := node(t)
	want := Underlay{Device: "up0", MTU: 1500, Addrs: []netip.Prefix{pfx("192.0.2.1/24"), pfx("2001:db8::1/64")}}
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		u, err := h.ReadUnderlay(addr(a))
		if d := cmp.Diff(want, u, cmpopts.EquateComparable(netip.Prefix{})); err != nil || d != "" {
			t.Errorf("%s: %v\n%s", a, err, d)
		}
	}
	nettest.Run(t, "ip", strings.Fields("-6 route add default via 2001:db8::9 dev up0 proto ra")...)
	if u, err := h.ReadUnderlay(addr("192.0.2.1")); err != nil || !u.RARoute {
		t.Errorf("RA route not seen: %+v, %v", u, err)
	}
	if _, err := h.ReadUnderlay(addr("192.0.2.2")); err == nil || !strings.Contains(err.Error(), "192.0.2.2") {
		t.Errorf("an address nobody has: %v", err)
	}
	if _, err := h.ReadUnderlay(addr("127.0.0.1")); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("loopback: %v", err)
	}
}

func TestSysctl_otherNamespace(t *testing.T) {
	h := node(t)
	nettest.Do(t, nettest.Make(t), func() {
		err := h.Apply(Ops{{Change, SysctlObject{"net/ipv4/ip_forward", "1"}}})
		if err == nil || !strings.Contains(err.Error(), "another network namespace") {
			t.Errorf("got %v", err)
		}
		if _, err := h.Read("net/ipv4/ip_forward"); err == nil {
			t.Error("read from another namespace")
		}
		b, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err != nil || strings.TrimSpace(string(b)) != "0" {
			t.Errorf("written in the wrong namespace: %s %v", b, err)
		}
	})
}

func TestSysctl_errorsNamePath(t *testing.T) {
	h := node(t)
	err := h.Apply(Ops{{Change, SysctlObject{"net/ipv4/conf/nosuchlink/rp_filter", "2"}}})
	if err == nil || !strings.Contains(err.Error(), "/proc/sys/net/ipv4/conf/nosuchlink/rp_filter") {
		t.Errorf("got %v", err)
	}
}

// TestSysctl_root reads and writes below another folder, as in a container that
// has the host's mounted elsewhere.
func TestSysctl_root(t *testing.T) {
	nettest.New(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "net/ipv4/ip_forward")
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte("0\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	h, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	want := NewState()
	want.Sysctls["net/ipv4/ip_forward"] = "1"
	reach(t, h, want)
	if b, _ := os.ReadFile(file); !strings.HasPrefix(string(b), "1") {
		t.Errorf("file has %q", b)
	}
}

// TestSysctl_keepsRARoute turns IPv6 forwarding on beside a default route from
// router advertisements. accept_ra must come first.
func TestSysctl_keepsRARoute(t *testing.T) {
	want := NewState()
	want.Sysctls["net/ipv6/conf/all/forwarding"] = "1"
	want.Sysctls["net/ipv6/conf/up0/accept_ra"] = "2"
	want.Sysctls["net/ipv4/ip_forward"] = "1"
	ops := Diff(NewState(), want)
	if got := ops[0].String(); got != "sysctl -w net/ipv6/conf/up0/accept_ra=2" {
		t.Errorf("first is %q of\n%s", got, ops)
	}
}

func TestNewConn_notNetlink(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := newConn(int(f.Fd())); err == nil || !strings.Contains(err.Error(), "not a netlink socket") {
		t.Errorf("got %v", err)
	}
}

// TestDump_interrupted reads while links come and go: each read must be of one
// moment or say that it was not.
func TestDump_interrupted(t *testing.T) {
	h := node(t)
	want := vtep(1, 2, 3, 4, 5)
	reach(t, h, want)
	cmd := exec.Command("sh", "-c", "i=0; while :; do ip link add pz$i type bridge; ip route add 203.0.113.$i/32 dev up0; i=$((i+1)); [ $i = 200 ] && exit; done")
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { _ = cmd.Wait() }()
	for range 200 {
		if left := drift(t, h, want); len(left) != 0 {
			t.Fatalf("a read amid changes differs by\n%s", left)
		}
	}
}

// TestApply_thousandPeers is more neighbours than the kernel's default limit of
// 1,024 (gc_thresh3), which permanent ones do not count against.
func TestApply_thousandPeers(t *testing.T) {
	h := node(t)
	s := manyPeers(1000)
	reach(t, h, s)
	l := s.Links["pl-vxlan"]
	l.MAC = mac(2)
	s.Links["pl-vxlan"] = l
	reach(t, h, s)
	reach(t, h, NewState())
}

func manyPeers(n int) State {
	s := vtep()
	for i := range n {
		hi, lo := byte(i/250), byte(i%250)
		m := MAC{2, 1, 0, 0, hi, lo}
		s.FDB[FDBKey{"pl-vxlan", m}] = netip.AddrFrom4([4]byte{198, 18, hi, lo})
		for _, p := range []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 100 + hi, lo, 0}), 24),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 6: hi, 7: lo}), 64),
		} {
			r := Route{Via: p.Addr(), Dev: "pl-vxlan", Src: addr("10.244.0.1"), OnLink: true}
			if p.Addr().Is6() {
				r.Via, r.Src = netip.AddrFrom16([16]byte{0xfe, 0x80, 14: hi, 15: lo}), addr("fd00:244::1")
			}
			s.Neighs[NeighKey{"pl-vxlan", r.Via}] = m
			s.Routes[RouteKey{p}] = r
		}
	}
	return s
}

// BenchmarkRead reads a node of a dual-stack cluster of 1,000.
func BenchmarkRead(b *testing.B) {
	h := node(b)
	want := manyPeers(1000)
	reach(b, h, want)
	for b.Loop() {
		read(b, h, want)
	}
}

// BenchmarkApply makes and removes a peer of a node of 1,000.
func BenchmarkApply(b *testing.B) {
	h := node(b)
	less, more := manyPeers(999), manyPeers(1000)
	reach(b, h, less)
	add, del := Diff(less, more), Diff(more, less)
	for b.Loop() {
		if err := errors.Join(h.Apply(add), h.Apply(del)); err != nil {
			b.Fatal(err)
		}
	}
}
