package bpf

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

// What an agent leaves behind goes on: packets take the shortcut with no process
// that holds anything, the next agent adopts it, and Remove leaves nothing.
func TestLife(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) { life(t, newWorld(t, attach)) })
	}
}

func life(t *testing.T, w *world) {
	n1, to := w.nodes[0], w.nodes[1].pods[0]
	serve(t, to.ns)
	want, before := n1.last, n1.count(t, "shortcut_direct")
	n1.fast.Close()
	normal := w.forwarded(t)
	talk(t, "no agent", n1.pods[0].ns, to.addr(false))
	n1.open(t, w)
	nettest.Do(t, n1.ns, func() { // as where the first Apply has failed
		left, err := n1.fast.AttachSome(2)
		must(t, err)
		if left != 0 {
			t.Errorf("%d programs are left to attach before the first Apply", left)
		}
	})
	if now := n1.count(t, "shortcut_direct"); now < before+10 {
		t.Errorf("%d packets took the shortcut with no agent", now-before)
	}
	if len(n1.fast.pods) != 4 || len(n1.fast.peers) != 4 || len(n1.fast.devices) != 4 {
		t.Errorf("adopted %v, %v, %v", n1.fast.pods, n1.fast.peers, n1.fast.devices)
	}
	n1.grows(t, "shortcut_direct", func() { talk(t, "adopted", n1.pods[0].ns, to.addr(true)) })
	if now := w.forwarded(t); now != normal {
		t.Errorf("%d packets took the normal path", now-normal)
	}
	nettest.Do(t, n1.ns, func() { n1.applyFast(t, want) })
	n1.fast.Close()
	nettest.Do(t, n1.ns, func() {
		must(t, Remove(w.dir(n1)))
		must(t, Remove(w.dir(n1)))
		for _, dev := range []string{"eth0", "plpod5", "plpod6", "pl-vxlan"} {
			if n := attachedTo(t, dev); n != 0 {
				t.Errorf("%s has %d programs after Remove", dev, n)
			}
			if out := run(t, "tc filter show dev %s ingress", dev); out != "" {
				t.Errorf("%s: %s", dev, out)
			}
		}
		must(t, RemoveQdiscs())
		if out := run(t, "tc qdisc show"); strings.Contains(out, "clsact") {
			t.Error(out)
		}
	})
	if _, err := os.Stat(w.dir(n1)); !os.IsNotExist(err) {
		t.Errorf("%s: %v", w.dir(n1), err)
	}
	talk(t, "removed", n1.pods[0].ns, to.addr(false))
	if now := n1.forwarded(t); now == 0 {
		t.Error("the normal path has seen nothing after Remove")
	}
}

func attachedTo(t testing.TB, dev string) int {
	t.Helper()
	ifi, err := net.InterfaceByName(dev)
	must(t, err)
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifi.Index, Attach: ebpf.AttachTCXIngress})
	must(t, err)
	return len(r.Programs)
}

// On, off and replaced under traffic: long connections go on, and no datagram
// is lost.
func TestLife_underTraffic(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) { underTraffic(t, newWorld(t, attach)) })
	}
}

func underTraffic(t *testing.T, w *world) {
	n1 := w.nodes[0]
	var stop atomic.Bool
	var rounds atomic.Int64
	var ended []chan error
	for _, to := range w.others() {
		serve(t, to.ns)
		for _, v6 := range families {
			for _, network := range []string{"tcp", "udp"} {
				nettest.Do(t, n1.pods[0].ns, func() {
					c, err := dial(network, netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7777))
					must(t, err)
					t.Cleanup(func() { _ = c.Close() })
					done := make(chan error, 1)
					ended = append(ended, done)
					go func() { done <- pingPong(c, &stop, &rounds) }()
				})
			}
		}
	}
	for i := range 12 {
		for _, m := range w.nodes {
			nettest.Do(t, m.ns, func() { w.turn(t, m, i+m.index) })
			time.Sleep(30 * time.Millisecond)
		}
	}
	stop.Store(true)
	for _, done := range ended {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if rounds.Load() < 1000 {
		t.Errorf("%d messages: too few to tell", rounds.Load())
	}
}

// turn does one of: off; on; another agent, which replaces the programs.
func (w *world) turn(t *testing.T, m *machine, i int) {
	switch i % 4 {
	case 0:
		m.applyFast(t, nothing())
	case 2:
		must(t, Remove(w.dir(m)))
		m.fast.Close()
		m.open(t, w)
		m.applyFast(t, m.last)
	case 3:
		m.fast.Close()
		m.open(t, w)
	default:
		m.applyFast(t, m.last)
	}
}

// pingPong has one message at a time on the way until it is to stop. A lost
// datagram is an error after the deadline.
func pingPong(c net.Conn, stop *atomic.Bool, rounds *atomic.Int64) error {
	for !stop.Load() {
		_ = c.SetDeadline(time.Now().Add(3 * time.Second))
		if err := echo(c, payload[:1000]); err != nil {
			return err
		}
		rounds.Add(1)
	}
	return nil
}

// A cluster in which one node has no fast path.
func TestMixedCluster(t *testing.T) {
	w := newWorld(t, "")
	n2 := w.nodes[1]
	nettest.Do(t, n2.ns, func() { must(t, Remove(w.dir(n2))) })
	n2.fast = nil
	for _, m := range w.nodes {
		serve(t, m.pods[0].ns)
	}
	for _, from := range w.nodes {
		for _, to := range w.nodes {
			for _, v6 := range families {
				if from != to {
					talk(t, from.name+" to "+to.name, from.pods[1].ns, to.pods[0].addr(v6))
				}
			}
		}
	}
	if n2.forwarded(t) == 0 || w.nodes[0].forwarded(t) != 0 {
		t.Errorf("normal path: n2 %d packets, n1 %d", n2.forwarded(t), w.nodes[0].forwarded(t))
	}
}

// Pods come and go: their entries and pins do too, and an address that another
// pod gets is that pod's at once.
func TestPodChurn(t *testing.T) {
	w := newWorld(t, "")
	n1 := w.nodes[0]
	for range 5 {
		gone := n1.pods[0]
		must(t, n1.link.DeletePod(gone.Link))
		n1.pods = n1.pods[1:]
		w.addPod(t, n1, 5)
		n1.pods[0], n1.pods[1] = n1.pods[1], n1.pods[0]
		serve(t, n1.pods[0].ns)
		for _, v6 := range families {
			n1.grows(t, "shortcut_in", func() { talk(t, "new pod", w.nodes[1].pods[0].ns, n1.pods[0].addr(v6)) })
		}
	}
	files, err := os.ReadDir(w.dir(n1) + "/" + layout)
	must(t, err)
	if len(files) != 4+4 || len(n1.fast.pods) != 4 {
		t.Errorf("pins %v, pods %v", files, n1.fast.pods)
	}
	must(t, n1.link.DeletePod(n1.pods[0].Link))
	n1.pods = n1.pods[1:]
	w.apply(t, n1)
	if len(n1.fast.pods) != 2 || len(n1.fast.devices) != 3 {
		t.Errorf("after the end of a pod: %v, %v", n1.fast.pods, n1.fast.devices)
	}
}

// What an agent with more rights left is taken away with NET_ADMIN alone, and packets
// take the normal path.
func TestRemove_netAdminAlone(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) {
			w := newWorld(t, attach)
			n1, to := w.nodes[0], w.nodes[1].pods[0]
			serve(t, to.ns)
			n1.fast.Close()
			nettest.Do(t, n1.ns, func() {
				header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
				var all [2]unix.CapUserData
				must(t, unix.Capget(&header, &all[0]))
				few := all
				few[0].Effective, few[1].Effective = 1<<unix.CAP_NET_ADMIN, 0
				must(t, unix.Capset(&header, &few[0]))
				err := Remove(w.dir(n1))
				must(t, unix.Capset(&header, &all[0]))
				must(t, err)
				for start := time.Now(); attachedTo(t, "eth0")+attachedTo(t, "plpod5") != 0; time.Sleep(10 * time.Millisecond) {
					if time.Since(start) > 5*time.Second {
						t.Fatal("programs are still attached")
					}
				}
			})
			before := n1.forwarded(t)
			talk(t, "removed", n1.pods[0].ns, to.addr(false))
			if n1.forwarded(t) == before {
				t.Error("the normal path has seen nothing")
			}
		})
	}
}
