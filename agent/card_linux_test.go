package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/takeover"
)

// Two nodes whose cards spoil what is in VXLAN, by not making the inner checksums that are left to
// them: both nodes find out and keep to checksums made by the kernel, so that VXLAN works. Cards that
// do not are left to it.
func TestChecksums_card(t *testing.T) {
	for name, spoils := range map[string][2]bool{"good cards": {}, "one spoils": {true, false}, "both spoil": {true, true}} {
		t.Run(name, func(t *testing.T) { cards(t, spoils) })
	}
}

func cards(t *testing.T, spoils [2]bool) {
	nettest.New(t)
	nodes, names := cluster.NewBuilder(), [2]string{"n1", "n2"}
	var agents [2]*cardAgent
	var ends [2]int
	for i, name := range names {
		nodes.SetNode(&cluster.Node{Key: cluster.Key{Name: name}, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})},
			PodCIDRs: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24)}})
		agents[i] = &cardAgent{name: name, way: overlay.Way{Node: names[1-i]}, ns: nettest.Make(t)}
		dev := "card-" + name
		nettest.Run(t, "ip", "link", "add", dev, "type", "veth", "peer", "name", "eth0")
		move(t, "eth0", agents[i].ns)
		nettest.Run(t, "sysctl", "-qw", "net.ipv6.conf."+dev+".disable_ipv6=1")
		nettest.Run(t, "ip", "link", "set", dev, "up", "promisc", "on")
		ends[i] = wire(t, dev)
		nettest.Do(t, agents[i].ns, func() {
			nettest.Run(t, "ip", "link", "set", "eth0", "up")
			nettest.Run(t, "ip", "addr", "add", "192.0.2."+name[1:]+"/24", "dev", "eth0")
		})
	}
	carryAll(t, ends, spoils)
	for _, a := range agents {
		a.start(t, nodes.Publish())
	}
	// A node with a good card may find either: its peer's is what its packets are lost by.
	settled := func(i int) bool {
		now := agents[i].now.Load()
		return now != nil && now.arrives && (now.soft && !now.trial || !spoils[i])
	}
	for began := time.Now(); !settled(0) || !settled(1); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > 90*time.Second {
			t.Fatalf("n1 %+v, n2 %+v", agents[0].now.Load(), agents[1].now.Load())
		}
	}
	for _, a := range agents {
		if now := a.now.Load(); spoils == [2]bool{} && (now.soft || now.trial) {
			t.Errorf("%s: %+v", a.name, now)
		}
	}
}

// cardAgent is the loop of an agent in a node's namespace, as far as ways to others go.
type cardAgent struct {
	*Agent
	name string
	way  overlay.Way // to the other node
	ns   netns.NsHandle
	now  atomic.Pointer[found]
}

// found is what an agent has found of its one way.
type found struct{ arrives, soft, trial bool }

func (a *cardAgent) start(t *testing.T, s *cluster.Snapshot) {
	c := Config{Node: a.name, Overlay: overlay.Config{Cluster: "c", Mode: overlay.VXLAN}, RunDir: t.TempDir(), StateDir: t.TempDir(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Operations: Operations{Mode: takeover.On}}
	a.Agent = newAgent(c, nil)
	a.snapshot = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	in := func(f func() error) {
		go func() {
			runtime.LockOSThread() // for ever: the thread ends with it
			err := netns.Set(a.ns)
			if err == nil {
				err = f()
			}
			done <- err
		}()
	}
	in(func() error { return a.run(ctx) })
	in(func() error { return a.probing.prober.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		for range cap(done) {
			if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", a.name, err)
			}
		}
	})
}

func (a *cardAgent) run(ctx context.Context) error {
	if err := a.open(); err != nil {
		return err
	}
	defer a.close()
	a.operations.decide(ctx, &a.services)
	notices, err := a.links.handle.Watch(ctx)
	if err != nil {
		return err
	}
	relink := time.NewTicker(linksEvery)
	defer relink.Stop()
	for {
		a.turned()
		a.now.Store(&found{a.probing.vxlanArrives(a.way), a.probing.probed != nil && a.probing.probed.SoftChecksum, a.probing.trial.phase != noTrial})
		select {
		case <-ctx.Done():
			return a.lastErr
		case r := <-a.probing.prober.Results():
			a.probing.judge(r, time.Now())
		case <-notices:
			a.links.doubt()
			a.probing.prober.Again()
		case <-relink.C:
			a.links.doubt()
			a.probing.tick(time.Now())
		}
	}
}

// wire opens a device for whole frames, with what is left to the card of each in front
// (struct virtio_net_hdr).
func wire(t *testing.T, dev string) int {
	t.Helper()
	ifi, err := net.InterfaceByName(dev)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for _, option := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// carryAll takes frames from each end of a wire to the other until the test ends.
func carryAll(t *testing.T, ends [2]int, spoils [2]bool) {
	var stop atomic.Bool
	var carriers sync.WaitGroup
	for i := range ends {
		carriers.Go(func() {
			buf := make([]byte, 1<<17)
			for !stop.Load() {
				if n, err := unix.Read(ends[i], buf); err == nil {
					card(buf[:n], spoils[i])
					_, _ = unix.Write(ends[1-i], buf[:n])
				}
			}
		})
	}
	t.Cleanup(func() { stop.Store(true); carriers.Wait() })
}

// card does to a frame what a card does, by what is in front of it: a checksum that is left to the card is
// one that the other node need not look at. A card that spoils does not make those inside of VXLAN.
func card(b []byte, spoils bool) {
	const header, leftToCard = 10, 1 // of struct virtio_net_hdr: its size, VIRTIO_NET_HDR_F_NEEDS_CSUM
	const outer = 14 + 20            // where the checksum of the outer UDP begins
	if len(b) < header+outer+8 {
		return
	}
	frame, start := b[header:], binary.NativeEndian.Uint16(b[6:])
	udp := frame[12] == 8 && frame[13] == 0 && frame[23] == unix.IPPROTO_UDP
	if spoils && udp && binary.BigEndian.Uint16(frame[outer+2:]) == 8472 && b[0]&leftToCard != 0 && start > outer {
		clear(b[:header])
	}
}
