package link

import (
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/internal/nettest"
)

// routeSocket opens a netlink socket inside ns, as the CNI shim does, and comes
// back.
func routeSocket(t testing.TB, ns netns.NsHandle) int {
	t.Helper()
	fd := -1
	nettest.Do(t, ns, func() {
		var err error
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

var podSpec = PodSpec{
	HostLink: "pl1", HostMAC: mac(0xf1), PodLink: "eth0", PodMAC: mac(0x05),
	Addrs:    []netip.Addr{addr("10.244.0.5"), addr("fd00:244::5")},
	Gateways: []netip.Addr{addr("10.244.0.1"), addr("fd00:244::1")},
	MTU:      1450,
}

// hostSide is the compiled state of podSpec.
func hostSide() State {
	s := NewState()
	s.Links["pl1"] = Link{Kind: Veth, MTU: 1450, MAC: podSpec.HostMAC}
	for i, a := range podSpec.Addrs {
		s.Addrs[Addr{"pl1", netip.PrefixFrom(podSpec.Gateways[i], a.BitLen())}] = struct{}{}
		s.Neighs[NeighKey{"pl1", a}] = podSpec.PodMAC
		s.Routes[RouteKey{netip.PrefixFrom(a, a.BitLen())}] = Route{Dev: "pl1"}
	}
	s.Sysctls["net/ipv6/conf/pl1/accept_dad"] = "0"
	s.Sysctls["net/ipv4/conf/pl1/rp_filter"] = "2"
	return s
}

func addPod(t testing.TB, h *Handle) (pod netns.NsHandle, socket int) {
	t.Helper()
	pod = nettest.Make(t)
	socket = routeSocket(t, pod)
	if err := h.AddPod(podSpec, int(pod), socket); err != nil {
		t.Fatal(err)
	}
	reach(t, h, hostSide())
	return pod, socket
}

// talks has the pod ask the node over TCP on both families, and the node the pod.
func talks(t *testing.T, pod netns.NsHandle) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for i, a := range podSpec.Addrs {
		exchange(t, pod, here, podSpec.Gateways[i])
		exchange(t, here, pod, a)
	}
}

// exchange connects from one namespace to an address of the other, which answers.
func exchange(t *testing.T, from, to netns.NsHandle, a netip.Addr) {
	t.Helper()
	var l net.Listener
	nettest.Do(t, to, func() {
		var err error
		if l, err = net.Listen("tcp", netip.AddrPortFrom(a, 7777).String()); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = c.Write([]byte("yes"))
			_ = c.Close()
		}
	}()
	nettest.Do(t, from, func() {
		got, err := ask(a)
		if err != nil || got != "yes" {
			t.Errorf("%s: %q, %v", a, got, err)
		}
	})
}

// ask dials on the calling goroutine's thread: for one literal address package
// net starts no other for it.
func ask(a netip.Addr) (string, error) {
	c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 7777).String(), 3*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestAddPod(t *testing.T) {
	h := node(t)
	pod, socket := addPod(t, h)
	if err := h.CheckPod(podSpec, socket); err != nil {
		t.Error(err)
	}
	talks(t, pod)
	for range 2 {
		if err := h.DeletePod("pl1"); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	reach(t, h, NewState())
}

// TestAddPod_oneQueue: on a machine with several CPUs the kernel makes more unasked, which
// takes it as long as all else of a pair.
func TestAddPod_oneQueue(t *testing.T) {
	h := node(t)
	pod, _ := addPod(t, h)
	const want = "numtxqueues 1 numrxqueues 1 "
	if out := nettest.Run(t, "ip", "-d", "link", "show", "pl1"); !strings.Contains(out, want) {
		t.Errorf("no %q in %s", want, out)
	}
	nettest.Do(t, pod, func() {
		if out := nettest.Run(t, "ip", "-d", "link", "show", "eth0"); !strings.Contains(out, want) {
			t.Errorf("no %q in the pod's %s", want, out)
		}
	})
}

// TestAddPod_netAdminAlone does the wiring with CAP_NET_ADMIN and no other
// capability: the agent has no more.
func TestAddPod_netAdminAlone(t *testing.T) {
	h := node(t)
	pod := nettest.Make(t)
	socket := routeSocket(t, pod)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // capabilities are the thread's
	defer runtime.UnlockOSThread()
	few := all
	few[0].Effective, few[1].Effective = 1<<unix.CAP_NET_ADMIN, 0
	if err := unix.Capset(&header, &few[0]); err != nil {
		t.Fatal(err)
	}
	setns := unix.Setns(int(pod), unix.CLONE_NEWNET)
	err := h.AddPod(podSpec, int(pod), socket)
	if err := unix.Capset(&header, &all[0]); err != nil {
		t.Fatal(err)
	}
	if setns == nil {
		t.Fatal("setns was allowed: the test proves nothing")
	}
	if err != nil {
		t.Fatal(err)
	}
	reach(t, h, hostSide())
	talks(t, pod)
}

func TestAddPod_inUse(t *testing.T) {
	h := node(t)
	pod, socket := addPod(t, h)
	if err := h.AddPod(podSpec, int(pod), socket); !errors.Is(err, ErrNameInUse) || !strings.Contains(err.Error(), "link pl1") {
		t.Errorf("same host link again: %v", err)
	}
	second := podSpec
	second.HostLink = "pl2"
	if err := h.AddPod(second, int(pod), socket); !errors.Is(err, ErrNameInUse) || !strings.Contains(err.Error(), "link eth0 in the pod's namespace") {
		t.Errorf("second eth0: %v", err)
	}
	if left := drift(t, h, hostSide()); len(left) != 0 {
		t.Errorf("the first pod suffered:\n%s", left)
	}
	talks(t, pod)
}

// TestAddPod_leavesNothing fails at every step that can be made to.
func TestAddPod_leavesNothing(t *testing.T) {
	h := node(t)
	pod := nettest.Make(t)
	socket := routeSocket(t, pod)
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	bad := func(change func(*PodSpec)) PodSpec { s := podSpec; change(&s); return s }
	for name, try := range map[string]struct {
		spec   PodSpec
		netns  int
		socket int
		want   string
	}{
		"MTU too small for IPv6":   {bad(func(s *PodSpec) { s.MTU = 1000 }), int(pod), socket, "address fd00:244::5/128"},
		"multicast gateway":        {bad(func(s *PodSpec) { s.Gateways = []netip.Addr{addr("224.0.0.1")} }), int(pod), socket, "invalid argument"},
		"MTU out of range":         {bad(func(s *PodSpec) { s.MTU = 1 << 20 }), int(pod), socket, "link pl1"},
		"socket of another place":  {podSpec, int(pod), routeSocket(t, here), "eth0"},
		"no namespace":             {podSpec, 9999, socket, "link pl1"},
		"socket of another family": {podSpec, int(pod), int(pod), "not a netlink socket"},
	} {
		err := h.AddPod(try.spec, try.netns, try.socket)
		if err == nil || !strings.Contains(err.Error(), try.want) {
			t.Errorf("%s: got %v", name, err)
		}
		if s := read(t, h, NewState()); len(s.Links) != 0 {
			t.Errorf("%s: left behind:\n%s", name, s)
		}
	}
	if err := h.AddPod(podSpec, int(pod), socket); err != nil {
		t.Errorf("the right one after them: %v", err)
	}
}

// TestCheckPod changes the wiring by hand; CheckPod must name it.
func TestCheckPod(t *testing.T) {
	for change, want := range map[string]string{
		"link set eth0 down":                        "is down",
		"link set eth0 mtu 1400":                    "has MTU 1400 and not 1450",
		"link set eth0 address 02:00:00:00:00:77":   "address 02:00:00:00:00:77",
		"addr del 10.244.0.5/32 dev eth0":           "address 10.244.0.5 is missing",
		"-6 addr del fd00:244::5/128 dev eth0":      "address fd00:244::5 is missing",
		"route del default":                         "route 0.0.0.0/0 is missing",
		"-6 route del default":                      "route ::/0 is missing",
		"neigh del 10.244.0.1 dev eth0":             "neighbour 10.244.0.1",
		"link set eth0 name eth9":                   "pod's link eth0",
		"link del eth0":                             "link pl1",
		"route replace default dev eth0 proto boot": "route 0.0.0.0/0 is missing",
	} {
		h := node(t)
		pod, socket := addPod(t, h)
		nettest.Do(t, pod, func() { nettest.Run(t, "ip", strings.Fields(change)...) })
		err := h.CheckPod(podSpec, socket)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: want %q, got %v", change, want, err)
		}
	}
}

// TestDiff_podGone ends a pod's namespace without a word: its pair goes with it.
func TestDiff_podGone(t *testing.T) {
	h := node(t)
	pod, socket := addPod(t, h)
	want := hostSide()
	nettest.Do(t, pod, func() { nettest.Run(t, "ip", "link", "del", "eth0") })
	_ = socket
	have := read(t, h, want)
	if m := Missing(have, want); len(m) != 1 || m[0] != "pl1" {
		t.Errorf("missing: %v", m)
	}
	if err := h.Apply(Diff(have, want)); err != nil {
		t.Errorf("a pod that has ended is no error of apply: %v", err)
	}
	reach(t, h, NewState())
}

// TestDiff_fromApplied adds a pod and applies the difference to what was applied
// before it, as the agent does, which reads back only after a doubt.
func TestDiff_fromApplied(t *testing.T) {
	h := node(t)
	pod := nettest.Make(t)
	applied := vtep(1)
	reach(t, h, applied)
	if err := h.AddPod(podSpec, int(pod), routeSocket(t, pod)); err != nil {
		t.Fatal(err)
	}
	want := vtep(1)
	p := hostSide()
	maps.Copy(want.Links, p.Links)
	maps.Copy(want.Addrs, p.Addrs)
	maps.Copy(want.Neighs, p.Neighs)
	maps.Copy(want.Routes, p.Routes)
	maps.Copy(want.Sysctls, p.Sysctls)
	if err := h.Apply(Diff(applied, want)); err != nil {
		t.Fatal(err)
	}
	if left := drift(t, h, want); len(left) != 0 {
		t.Errorf("left:\n%s", left)
	}
	talks(t, pod)
}

// TestApply_repairsPod breaks the host's side of a pod by hand.
func TestApply_repairsPod(t *testing.T) {
	for _, c := range []string{
		"ip link set pl1 down", "ip link set pl1 down; ip link set pl1 up", "ip route flush proto 112",
		"ip -6 route flush proto 112", "ip addr flush dev pl1", "ip neigh flush dev pl1 nud permanent",
		"ip link set pl1 address 02:00:00:00:00:99", "ip link set pl1 mtu 1300",
		"echo 1 > /proc/sys/net/ipv4/conf/pl1/rp_filter",
	} {
		h := node(t)
		pod, _ := addPod(t, h)
		nettest.Run(t, "sh", "-ec", c)
		if len(drift(t, h, hostSide())) == 0 {
			t.Errorf("%s: not noticed", c)
		}
		reach(t, h, hostSide())
		talks(t, pod)
	}
}

// TestAddPod_otherSocket: the descriptor comes from another program, which may
// have bound it and made it non-blocking.
func TestAddPod_otherSocket(t *testing.T) {
	h := node(t)
	pod := nettest.Make(t)
	socket := routeSocket(t, pod)
	err := errors.Join(unix.SetNonblock(socket, true), unix.Bind(socket, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddPod(podSpec, int(pod), socket); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkAddPod(b *testing.B) {
	h := node(b)
	for b.Loop() {
		pod := nettest.Make(b)
		if err := h.AddPod(podSpec, int(pod), routeSocket(b, pod)); err != nil {
			b.Fatal(err)
		}
		if err := h.Apply(Diff(NewState(), hostSide())); err != nil {
			b.Fatal(err)
		}
		if err := h.DeletePod("pl1"); err != nil {
			b.Fatal(err)
		}
	}
}
