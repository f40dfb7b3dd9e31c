package bpf

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay/fastpath"
)

// Links that come and go while they are listed do not make the list fail.
func TestLinkStates_churn(t *testing.T) {
	nettest.New(t)
	for i := range 60 { // more than one answer of the kernel's
		run(t, "ip link add b%d type bridge", i)
	}
	var stop atomic.Bool
	ended := make(chan int)
	handle, err := netlink.NewHandle() // of this namespace, wherever it is used
	must(t, err)
	defer handle.Close()
	go func() {
		n := 0
		for ; !stop.Load(); n++ {
			l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "comes"}}
			_ = handle.LinkAdd(l)
			_ = handle.LinkDel(l)
		}
		ended <- n
	}()
	interrupted := 0
	for range 300 {
		if _, err := netlink.LinkList(); errors.Is(err, unix.EINTR) {
			interrupted++
		}
		states, err := linkStates()
		if err != nil || len(states) < 61 {
			t.Fatalf("%d links: %v", len(states), err)
		}
	}
	stop.Store(true)
	if n := <-ended; n == 0 || interrupted == 0 {
		t.Errorf("%d links came and went, %d lists were interrupted: too few to tell", n, interrupted)
	}
}

// pass is a program that looks on.
func pass(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, License: "GPL",
	})
	must(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// A program of someone else's at a device, which packets on the fast path would not
// meet, is seen, and ours are not taken for one.
func TestDevices_others(t *testing.T) {
	w := newWorld(t, TCX)
	n1 := w.nodes[0]
	for _, at := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
		var other link.Link
		nettest.Do(t, n1.ns, func() {
			var err error
			other, err = link.AttachTCX(link.TCXOptions{Interface: indexOf(t, "plpod5"), Program: pass(t), Attach: at})
			must(t, err)
		})
		w.apply(t, n1)
		if n1.last.Normal["plpod5"] != fastpath.Shaped || n1.last.Normal["plpod6"] != "" {
			t.Errorf("%v: %v", at, n1.last.Normal)
		}
		must(t, other.Close())
		w.apply(t, n1)
		if len(n1.last.Normal) != 0 {
			t.Errorf("%v, gone: %v", at, n1.last.Normal)
		}
	}
}

func indexOf(t testing.TB, dev string) int {
	t.Helper()
	l, err := netlink.LinkByName(dev)
	must(t, err)
	return l.Attrs().Index
}

// A device without Ethernet headers is told from one that has them.
func TestDevices_bare(t *testing.T) {
	nettest.New(t)
	h := open(t, Config{Dir: bpffs(t)})
	run(t, "ip tuntap add t0 mode tun")
	run(t, "ip tuntap add t1 mode tap")
	devices, err := h.Devices()
	must(t, err)
	if !devices["t0"].Bare || devices["t1"].Bare {
		t.Errorf("%+v", devices)
	}
}

// Programs that someone takes from a device are missed, and put there again; until
// then both directions take the normal path.
func TestApply_programTaken(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) {
			w := newWorld(t, attach)
			n1, to := w.nodes[0], w.nodes[1].pods[0]
			serve(t, to.ns)
			serve(t, n1.pods[0].ns)
			for _, dev := range []string{"eth0", "plpod5"} {
				n1.take(t, w, dev)
				want := n1.last
				nettest.Do(t, n1.ns, func() { must(t, n1.fast.Apply(want)) })
				before := n1.forwarded(t)
				talk(t, dev+" has no program", n1.pods[0].ns, to.addr(false))
				if now := n1.forwarded(t); now < before+10 {
					t.Errorf("%s: %d packets took the normal path, want all", dev, now-before)
				}
				w.apply(t, n1)
				before = n1.forwarded(t)
				n1.grows(t, "shortcut_in", func() { talk(t, dev+" has it again", n1.pods[0].ns, to.addr(false)) })
				if now := n1.forwarded(t); now != before {
					t.Errorf("%s: %d packets took the normal path", dev, now-before)
				}
			}
		})
	}
}

// take takes our program from a device, as an administrator may.
func (m *machine) take(t *testing.T, w *world, dev string) {
	t.Helper()
	if w.attach == Clsact {
		nettest.Do(t, m.ns, func() { run(t, "tc qdisc del dev %s clsact", dev) })
		return
	}
	pins, err := filepath.Glob(fmt.Sprintf("%s/%s/*@%s", w.dir(m), layout, dev))
	if err != nil || len(pins) != 1 {
		t.Fatalf("%v %v", pins, err)
	}
	l, err := link.LoadPinnedLink(pins[0], nil)
	must(t, err)
	must(t, l.Detach())
	must(t, l.Close())
}

// What an agent of another layout has left is replaced: after an upgrade, and after
// the way back from one.
func TestOtherLayout(t *testing.T) {
	for _, attach := range []Attach{TCX, Clsact} {
		t.Run(string(attach), func(t *testing.T) {
			w := newWorld(t, attach)
			n1, to := w.nodes[0], w.nodes[1].pods[0]
			serve(t, to.ns)
			n1.fast.Close()
			must(t, os.Rename(w.dir(n1)+"/"+layout, w.dir(n1)+"/v99"))
			talk(t, "the other layout's", n1.pods[0].ns, to.addr(false))
			n1.open(t, w)
			stays(t, n1)
			w.apply(t, n1)
			if len(n1.last.Normal) != 0 {
				t.Errorf("kept off: %v", n1.last.Normal)
			}
			n1.grows(t, "shortcut_direct", func() { talk(t, "ours", n1.pods[0].ns, to.addr(false)) })
			if left, err := os.ReadDir(w.dir(n1)); err != nil || len(left) != 1 || left[0].Name() != layout {
				t.Errorf("left: %v %v", left, err)
			}
			if attach == TCX {
				nettest.Do(t, n1.ns, func() {
					if n := attachedTo(t, "eth0"); n != 1 {
						t.Errorf("%d programs at eth0", n)
					}
				})
			}
			n1.fast.Close()
			must(t, os.Rename(w.dir(n1)+"/"+layout, w.dir(n1)+"/v99"))
			nettest.Do(t, n1.ns, func() {
				must(t, Remove(w.dir(n1)))
				if n := attachedTo(t, "eth0"); n != 0 {
					t.Errorf("%d programs at eth0 after Remove", n)
				}
			})
		})
	}
}

// stays demands that pods which took the fast path by the other layout's maps are said to take it, from
// the start and when ours have them, but not one that a State leaves out.
func stays(t *testing.T, m *machine) {
	t.Helper()
	said := func(when string, want bool) {
		t.Helper()
		for _, p := range m.pods {
			for _, a := range p.Addrs {
				if m.fast.Takes(a) != (want || p.Link != m.pods[0].Link) {
					t.Errorf("%s: %s takes the fast path: %v", when, a, m.fast.Takes(a))
				}
			}
		}
	}
	said("opened", true)
	nettest.Do(t, m.ns, func() {
		must(t, m.fast.Apply(m.last))
		said("no program is attached yet", true)
		without := m.last
		without.Pods = maps.Clone(without.Pods)
		for _, a := range m.pods[0].Addrs {
			delete(without.Pods, a)
		}
		must(t, m.fast.Apply(without))
		said("one was left out", false)
	})
}

// A program of another layout goes too where ours can never be attached: a link has room for so
// many. Its packets take the normal path, and those of the other links the fast path.
func TestOtherLayout_noRoom(t *testing.T) {
	w := newWorld(t, TCX)
	n1, to := w.nodes[0], w.nodes[1].pods[0]
	serve(t, to.ns)
	n1.fast.Close()
	must(t, os.Rename(w.dir(n1)+"/"+layout, w.dir(n1)+"/v99"))
	n1.open(t, w)
	nettest.Do(t, n1.ns, func() {
		full := crowd(t, n1.pods[0].Link)
		must(t, n1.fast.Apply(n1.last))
		for left := 1; left > 0; {
			var err error
			if left, err = n1.fast.AttachSome(1); left == 0 && (err == nil || !strings.Contains(err.Error(), n1.pods[0].Link)) {
				t.Errorf("of the link without room: %v", err)
			}
		}
		if n := attachedTo(t, n1.pods[0].Link); n != full-1 {
			t.Errorf("%d programs at the link, %d of others", n, full-1)
		}
	})
	if left, err := os.ReadDir(w.dir(n1)); err != nil || len(left) != 1 || left[0].Name() != layout {
		t.Errorf("left: %v %v", left, err)
	}
	before := n1.forwarded(t)
	talk(t, "without room", n1.pods[0].ns, to.addr(false))
	if n1.forwarded(t) == before {
		t.Error("the normal path has seen nothing")
	}
	n1.grows(t, "shortcut_direct", func() { talk(t, "another pod", n1.pods[1].ns, to.addr(false)) })
}

// crowd attaches programs that do nothing to a device until it takes no more, and gives how many
// it has.
func crowd(t testing.TB, dev string) int {
	t.Helper()
	ifi, err := net.InterfaceByName(dev)
	must(t, err)
	for range 1000 { // the same program only once
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
		must(t, err)
		l, err := link.AttachTCX(link.TCXOptions{Interface: ifi.Index, Program: p, Attach: ebpf.AttachTCXIngress})
		must(t, p.Close())
		if errors.Is(err, unix.ERANGE) {
			return attachedTo(t, dev)
		}
		must(t, err)
		t.Cleanup(func() { _ = l.Close() })
	}
	t.Fatal("there is always room")
	return 0
}

// An IPsec policy between pods is met on the normal path: here one that forbids.
func TestNormal_ipsec(t *testing.T) {
	w := newWorld(t, "")
	n1, to := w.nodes[0], w.nodes[1].pods[0]
	serve(t, to.ns)
	for name, v6 := range families {
		from, peer := w.api[0].PodCIDRs[0], w.api[1].PodCIDRs[0]
		if v6 {
			from, peer = w.api[0].PodCIDRs[1], w.api[1].PodCIDRs[1]
		}
		policy := fmt.Sprintf("src %s dst %s dir out", from, peer)
		nettest.Do(t, n1.ns, func() { run(t, "ip xfrm policy add %s action block", policy) })
		w.apply(t, n1)
		if n1.last.Normal[peer.String()] != fastpath.Ipsec || len(n1.last.Normal) != 1 {
			t.Errorf("%s: %v", name, n1.last.Normal)
		}
		nettest.Do(t, n1.pods[0].ns, func() {
			c, err := dial("udp", netip.AddrPort{}, netip.AddrPortFrom(to.addr(v6), 7777))
			must(t, err)
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Second))
			if err := echo(c, payload[:100]); err == nil {
				t.Errorf("%s: what the policy forbids has arrived", name)
			}
		})
		talk(t, "the other family", n1.pods[0].ns, to.addr(!v6))
		nettest.Do(t, n1.ns, func() { run(t, "ip xfrm policy delete %s", policy) })
		w.apply(t, n1)
		n1.grows(t, "shortcut_direct", func() { talk(t, "no policy any more", n1.pods[0].ns, to.addr(v6)) })
	}
}

// Policies are read as they were written, and those that the library cannot tell are
// taken for more than they are.
func TestIPsec(t *testing.T) {
	nettest.New(t)
	for _, policy := range []string{
		"src 10.244.1.0/24 dst 10.244.2.0/24 dir out", "src 0.0.0.0/0 dst 10.0.0.1/32 dir in",
		"src fd00:244:1::/64 dst ::/0 dir fwd", "src fd00:244::/48 dst fd00::/16 dir out",
	} {
		run(t, "ip xfrm policy add %s action block", policy)
	}
	got, err := IPsec()
	must(t, err)
	want := map[string]bool{
		"10.244.1.0/24 10.244.2.0/24": true, "0.0.0.0/0 10.0.0.1/32": true, "fd00:244:1::/64 ::/0": true, "fd00:244::/32 fd00::/16": true,
	}
	for _, s := range got {
		delete(want, s.Src.String()+" "+s.Dst.String())
	}
	if len(got) != 4 || len(want) != 0 {
		t.Errorf("%v, without %v", got, want)
	}
}

// A policy that comes or goes is told, once for several.
func TestWatchIPsec(t *testing.T) {
	nettest.New(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	notices, err := WatchIPsec(ctx)
	must(t, err)
	if notices == nil {
		t.Skip("a kernel without IPsec")
	}
	told := func(want bool) {
		t.Helper()
		wait := 100 * time.Millisecond
		if want {
			wait = 5 * time.Second
		}
		select {
		case <-notices:
			if !want {
				t.Error("a notice of nothing")
			}
		case <-time.After(wait):
			if want {
				t.Error("no notice")
			}
		}
	}
	told(false)
	for _, verb := range []string{"add", "update"} {
		run(t, "ip xfrm policy %s src 10.0.0.0/24 dst 10.1.0.0/24 dir out tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel", verb)
		told(true)
	}
	run(t, "ip xfrm policy deleteall")
	told(true)
	told(false)
}
