package overlay_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// flood sends UDP as fast as it can for a while and gives the bytes that arrive.
func flood(t *testing.T, from, to pod, v6 bool, d time.Duration) (arrived int) {
	t.Helper()
	addr := netip.AddrPortFrom(to.Addrs[0], 9000)
	if v6 {
		addr = netip.AddrPortFrom(to.Addrs[1], 9000)
	}
	var in, out *net.UDPConn
	var err error
	nettest.Do(t, to.ns, func() { in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr)) })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	nettest.Do(t, from.ns, func() { out, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr)) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	end := time.Now().Add(d)
	go func() {
		for b := make([]byte, 1000); time.Now().Before(end); {
			if _, err := out.Write(b); err != nil {
				time.Sleep(time.Millisecond)
			}
		}
	}()
	_ = in.SetReadDeadline(end)
	for b := make([]byte, 2000); ; {
		n, err := in.Read(b)
		if err != nil {
			return arrived
		}
		arrived += n
	}
}

// TestKernel_shape limits a pod in both directions, and takes the limits away.
func TestKernel_shape(t *testing.T) {
	w := newWorld(t, overlay.Direct, "46")
	limited, other := &w.nodes["n1"].pods[0], w.nodes["n2"].pods[0]
	limit := link.Shape{Rate: 250_000, Burst: 64 << 10}
	const most = 64<<10 + 250_000/2 + 250_000/10 // in half a second, with some tolerance
	w.talk(t)
	limited.ToPod, limited.FromPod = limit, limit
	w.apply(t)
	w.talk(t)
	for _, v6 := range []bool{false, true} {
		if n := flood(t, *limited, other, v6, time.Second/2); n == 0 || n > most {
			t.Errorf("IPv6 %v: %d bytes from the pod in half a second, at most %d", v6, n, most)
		}
		time.Sleep(300 * time.Millisecond) // the bucket fills again
		if n := flood(t, other, *limited, v6, time.Second/2); n == 0 || n > most {
			t.Errorf("IPv6 %v: %d bytes to the pod in half a second, at most %d", v6, n, most)
		}
	}
	nettest.Do(t, w.nodes["n1"].ns, func() { run(t, "ip link del %s", overlay.Shaper(limited.Link)) })
	w.apply(t) // mends it
	w.talk(t)
	limited.ToPod, limited.FromPod = link.Shape{Rate: 1_000_000, Burst: 100_000}, link.Shape{}
	w.apply(t)
	w.talk(t)
	limited.ToPod = link.Shape{}
	w.apply(t)
	w.talk(t)
	nettest.Do(t, w.nodes["n1"].ns, func() {
		if out := run(t, "tc qdisc show"); strings.Contains(out, "tbf") || strings.Contains(out, "ingress") {
			t.Errorf("left:\n%s", out)
		}
	})
}
