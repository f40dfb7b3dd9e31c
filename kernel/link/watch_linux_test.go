package link

import (
	"context"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/internal/nettest"
)

// quiet waits until no notice has come for a while: a command has more than one
// effect, and the kernel tells of a carrier up to a second later.
func quiet(t *testing.T, notices <-chan error, long time.Duration) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-notices:
		case <-time.After(long):
			return
		case <-deadline:
			t.Fatal("notices without end")
		}
	}
}

func noticed(notices <-chan error) bool { return noticedWithin(notices, 500*time.Millisecond) }

func noticedWithin(notices <-chan error, long time.Duration) bool {
	select {
	case <-notices:
		return true
	case <-time.After(long):
		return false
	}
}

func TestWatch(t *testing.T) {
	h := node(t)
	// Duplicate address detection would give notices seconds later.
	nettest.Run(t, "sh", "-ec", "for f in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $f; done")
	want := vtep(1)
	want.Routes[RouteKey{pfx("10.99.0.0/24")}] = Route{Via: addr("192.0.2.9"), Dev: "up0"}
	reach(t, h, want)
	ctx, cancel := context.WithCancel(t.Context())
	notices, err := h.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if !noticed(notices) {
		t.Error("no first notice")
	}
	quiet(t, notices, 2500*time.Millisecond)
	for _, c := range []string{
		"ip route add 203.0.113.0/24 dev up0",
		"ip neigh add 192.0.2.55 lladdr 02:00:00:00:00:55 dev up0 nud permanent",
	} {
		nettest.Run(t, "sh", "-ec", c)
		if noticed(notices) {
			t.Errorf("notice of what is not ours: %s", c)
		}
	}
	if err := h.Apply(Ops{{Delete, RouteObject{RouteKey: RouteKey{pfx("10.244.1.0/24")}}}}); err != nil {
		t.Fatal(err)
	}
	if noticed(notices) {
		t.Error("notice of a change made through the handle")
	}
	reach(t, h, want)
	pod := nettest.Make(t)
	with, side := vtep(1), hostSide()
	maps.Copy(with.Routes, want.Routes)
	maps.Copy(with.Links, side.Links)
	maps.Copy(with.Addrs, side.Addrs)
	maps.Copy(with.Neighs, side.Neighs)
	maps.Copy(with.Routes, side.Routes)
	maps.Copy(with.Sysctls, side.Sysctls)
	for range 2 { // it comes, and goes again
		if err := h.AddPod(podSpec, int(pod), routeSocket(t, pod)); err != nil {
			t.Fatal(err)
		}
		if err := h.Apply(Diff(want, with)); err != nil {
			t.Fatal(err)
		}
		if noticedWithin(notices, 1500*time.Millisecond) { // the kernel tells of a carrier later
			t.Error("notice of a new pod")
		}
		if err := h.Apply(Diff(with, want)); err != nil {
			t.Fatal(err)
		}
		if noticedWithin(notices, time.Second) {
			t.Error("notice of a pod that Apply has removed")
		}
	}
	if err := h.AddPod(podSpec, int(pod), routeSocket(t, pod)); err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(Diff(want, with)); err != nil {
		t.Fatal(err)
	}
	quiet(t, notices, 1100*time.Millisecond)
	for _, c := range []string{
		"ip link set pl1 down", "ip link set pl1 mtu 1400", "ip addr del fd00:244::1/128 dev pl1", "ip addr add 192.0.2.77/32 dev pl1",
		"ip neigh del 10.244.0.5 dev pl1",
	} {
		nettest.Run(t, "sh", "-ec", c)
		if !noticed(notices) {
			t.Errorf("no notice within 0.5 s: %s", c)
		}
		reach(t, h, with)
		quiet(t, notices, 1100*time.Millisecond)
	}
	if err := h.DeletePod("pl1"); err != nil {
		t.Fatal(err)
	}
	if !noticed(notices) {
		t.Error("no notice of a deleted pod")
	}
	quiet(t, notices, 1100*time.Millisecond)
	for _, c := range []string{
		"ip route del 10.244.1.0/24",
		"ip -6 route del fd00:244:0:1::/64",
		"ip neigh del 10.244.1.0 dev pl-vxlan",
		"bridge fdb del 02:00:00:00:00:65 dev pl-vxlan dst 192.0.2.101",
		"ip addr del 10.244.0.1/32 dev pl-vxlan",
		"ip link set pl-vxlan mtu 1400",
		"ip link set up0 mtu 1400; ip link set up0 mtu 1500",
		"ip addr add 192.0.2.99/24 dev up0",
		"ip link set up0 down; ip link set up0 up",
		"ip link set pl-vxlan down; ip link set pl-vxlan up",
		"echo 0 >/proc/sys/net/ipv4/ip_forward",
		"echo 1 >/proc/sys/net/ipv6/conf/all/forwarding; echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
		"echo 0 >/proc/sys/net/ipv4/conf/pl-vxlan/forwarding",
		"echo 1 >/proc/sys/net/ipv4/conf/pl-vxlan/rp_filter",
		"ip link del pl-vxlan",
		"ip neigh del 10.244.1.0 dev pl-vxlan", // which has another index now
	} {
		nettest.Run(t, "sh", "-ec", c)
		if !noticed(notices) {
			t.Errorf("no notice within 0.5 s: %s", c)
		}
		reach(t, h, want)
		settle := 200 * time.Millisecond
		if strings.Contains(c, "link") {
			settle = 1100 * time.Millisecond
		}
		quiet(t, notices, settle)
	}
	cancel()
	for range notices {
	}
}
