package probe

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/internal/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

func run(t testing.TB, format string, args ...any) {
	t.Helper()
	words := strings.Fields(fmt.Sprintf(format, args...))
	nettest.Run(t, words[0], words[1:]...)
}

var ends = map[bool][2]netip.Addr{
	false: {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	true:  {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")},
}

// start runs a Prober whose sockets are in a namespace, which the calling thread
// must not be kept in.
func start(t *testing.T, ns netns.NsHandle) *Prober {
	t.Helper()
	p := New(8473, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- p.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

// pair is two namespaces on one wire, n1 and n2.
func pair(t *testing.T) (n1, n2 netns.NsHandle) {
	nettest.New(t)
	n1, n2 = nettest.Make(t), nettest.Make(t)
	run(t, "ip link add wire-a type veth peer name wire-b")
	run(t, "ip link set wire-a netns /proc/%d/fd/%d", os.Getpid(), n1)
	run(t, "ip link set wire-b netns /proc/%d/fd/%d", os.Getpid(), n2)
	for i, ns := range []netns.NsHandle{n1, n2} {
		dev := "wire-" + string("ab"[i])
		nettest.Do(t, ns, func() {
			run(t, "ip link set %s up", dev)
			run(t, "ip addr add %s/24 dev %s", ends[false][i], dev)
			run(t, "ip addr add %s/64 dev %s nodad", ends[true][i], dev)
		})
	}
	return n1, n2
}

// until waits for a result of a target.
func until(t *testing.T, p *Prober, name string, want Result) {
	t.Helper()
	end := time.After(20 * time.Second)
	last := Results{}
	for {
		select {
		case last = <-p.Results():
			if last[name] == want {
				return
			}
		case <-end:
			t.Fatalf("%s: %v, want %d", name, last, want)
		}
	}
}

func peers(v6 bool, i int, node string) map[netip.Addr]string {
	return map[netip.Addr]string{ends[v6][i]: node}
}

// TestProber asks over a wire that works, one that loses long packets, and one that
// loses all, and sees it work again.
func TestProber(t *testing.T) {
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			n1, n2 := pair(t)
			a, b := start(t, n1), start(t, n2)
			b.Peers(peers(v6, 0, "n1"))
			from, to := ends[v6][0], ends[v6][1]
			a.Try([]Target{{Name: "short", Node: "n2", From: from, To: to}, {Name: "full", Node: "n2", From: from, To: to, Size: 1500}})
			until(t, a, "short", Arrives)
			nettest.Do(t, n2, func() {
				nettest.Run(t, "nft", "table inet f { chain c { type filter hook prerouting priority -400; meta length > 1400 drop; }; }")
			})
			a.Try([]Target{{Name: "short", Node: "n2", From: from, To: to}, {Name: "longer", Node: "n2", From: from, To: to, Size: 1499}})
			until(t, a, "longer", Lost)
			nettest.Do(t, n2, func() { nettest.Run(t, "nft", "flush ruleset") })
			// What the other asks says that it is there.
			a.Peers(peers(v6, 1, "n2"))
			b.Try([]Target{{Name: "back", Node: "n1", From: to, To: from}})
			until(t, a, "longer", Arrives)
		})
	}
}

// TestProber_gone has many nodes that are gone, whose packets wait for neighbours:
// neither the caller waits, nor is one that is there taken for lost.
func TestProber_gone(t *testing.T) {
	n1, n2 := pair(t)
	a, b := start(t, n1), start(t, n2)
	b.Peers(peers(false, 0, "n1"))
	from, to := ends[false][0], ends[false][1]
	there := Target{Name: "there", Node: "n2", From: from, To: to, Size: 1500}
	a.Try([]Target{there})
	until(t, a, "there", Arrives)
	targets := []Target{there}
	for i := range 20 * 240 {
		gone := netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i%240)})
		targets = append(targets, Target{Name: fmt.Sprint("gone-", i), Node: "gone", From: from, To: gone, Size: 1500})
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		began := time.Now()
		a.Try(targets)
		if took := time.Since(began); took > time.Second {
			t.Fatalf("the caller waited for %s", took)
		}
		a.Again()
		select {
		case r := <-a.Results():
			if r["there"] == Lost {
				t.Fatal("the node that is there is lost")
			}
		default:
		}
	}
}

// TestSocket_end: however much there is to read, the end is at once.
func TestSocket_end(t *testing.T) {
	nettest.New(t)
	s, err := listen(false, 8473)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	lo := netip.MustParseAddr("127.0.0.1")
	for range 2 {
		if err := s.send([]byte("flood"), lo, netip.AddrPortFrom(lo, 8473)); err != nil {
			t.Fatal(err)
		}
	}
	buf, oob := make([]byte, 100), make([]byte, 256)
	if _, _, _, err := s.receive(buf, oob); err != nil {
		t.Fatal(err)
	}
	s.end()
	if _, _, _, err := s.receive(buf, oob); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a packet is received after the end: %v", err)
	}
}

// TestProber_stranger answers nobody but nodes, and those not without a limit.
func TestProber_stranger(t *testing.T) {
	n1, n2 := pair(t)
	a, b := start(t, n1), start(t, n2)
	b.Peers(map[netip.Addr]string{netip.MustParseAddr("192.0.2.77"): "other"})
	a.Try([]Target{{Name: "x", Node: "n2", From: ends[false][0], To: ends[false][1]}})
	until(t, a, "x", Lost)
}

// TestProber_witness: a way is lost only where the node is known to be there since it
// was asked in vain, or known to be gone.
func TestProber_witness(t *testing.T) {
	addr := map[string]netip.Addr{"node": netip.MustParseAddr("192.0.2.2"), "way": netip.MustParseAddr("10.244.2.0")}
	for name, c := range map[string]struct {
		there     bool
		way, node Result
	}{
		"the way is lost": {true, Lost, Arrives}, "the node is gone": {false, Lost, Lost},
	} {
		p := New(8473, slog.New(slog.DiscardHandler)) // without sockets
		p.Try([]Target{{Name: "node", Node: "n2", To: addr["node"]}, {Name: "way", Node: "n2", To: addr["way"], Witness: "node"}})
		now, gone := time.Unix(1e9, 0), false
		last := Results{}
		turns := func(d time.Duration, there map[string]bool, demand func()) {
			for end := now.Add(d); now.Before(end); now = now.Add(10 * time.Millisecond) {
				p.turn(now)
				for number, of := range maps.Clone(p.asked) {
					if there[of] {
						p.arrived(number, addr[of], now.Add(time.Millisecond))
					}
				}
				select {
				case last = <-p.Results():
					demand()
				default:
				}
			}
		}
		turns(time.Second, map[string]bool{"node": true, "way": true}, func() {})
		if last["node"] != Arrives || last["way"] != Arrives {
			t.Fatalf("%s: %v at first", name, last)
		}
		p.later(p.targets["node"], now.Add(15*time.Second)) // the way is asked long before
		turns(30*time.Second, map[string]bool{"node": c.there}, func() {
			gone = gone || last["way"] == Lost && last["node"] == Arrives
		})
		if last["way"] != c.way || last["node"] != c.node || gone == !c.there {
			t.Errorf("%s: %v, lost though the node arrives: %v", name, last, gone)
		}
		// What was lost while the node was away says nothing when it is back.
		if c.there {
			continue
		}
		there := map[string]bool{"node": true}
		turns(40*time.Second, there, func() {
			there["way"] = last["node"] == Arrives
			if last["node"] == Arrives && last["way"] == Lost {
				t.Errorf("%s: %v when the node is back", name, last)
			}
		})
		if last["node"] != Arrives || last["way"] != Arrives {
			t.Errorf("%s: %v at last", name, last)
		}
	}
}

// TestProber_many: where a thousand nodes do not answer, this is known of all their ways
// within a minute, they are asked seldom from then on, and a node that was there is
// found lost as soon as alone.
func TestProber_many(t *testing.T) {
	p := New(8473, slog.New(slog.DiscardHandler)) // without sockets
	var targets []Target
	for i := range 1001 {
		node := fmt.Sprint("node-", i)
		to := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		targets = append(targets, Target{Name: node, Node: node, To: to})
		for _, way := range []string{" direct", " vxlan", " full"} {
			targets = append(targets, Target{Name: node + way, Node: node, To: to, Witness: node})
		}
	}
	now := time.Now()
	p.Try(targets)
	last, alive := Results{}, true
	turns := func(d time.Duration) {
		for end := now.Add(d); now.Before(end); now = now.Add(turns) {
			p.turn(now)
			for _, s := range p.nodes["node-500"] {
				if alive && s.number != 0 {
					p.arrived(s.number, s.To, now.Add(time.Millisecond))
				}
			}
			select {
			case last = <-p.Results():
			default:
			}
		}
	}
	count := func(want Result) (n int) {
		for _, r := range last {
			if r == want {
				n++
			}
		}
		return n
	}
	turns(time.Minute)
	if count(Lost) != 4000 || count(Arrives) != 4 {
		t.Fatalf("after a minute: %d are lost, %d arrive", count(Lost), count(Arrives))
	}
	asked := p.next
	turns(10 * time.Minute)
	if n, most := p.next-asked, uint64(10*time.Minute/p.usual()+1)*uint64(len(targets)); n > most {
		t.Errorf("%d questions in ten minutes, want at most %d", n, most)
	}
	alive = false
	turns(p.usual() + 5*time.Second)
	if count(Lost) != len(targets) {
		t.Errorf("%d are lost, want all %d", count(Lost), len(targets))
	}
}

func TestLimiter(t *testing.T) {
	l, now := newLimiter(), time.Unix(1000, 0)
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i := range perSource {
		if !l.allow(one, now) {
			t.Fatalf("the %dth is refused", i+1)
		}
	}
	if l.allow(one, now) || !l.allow(two, now) || !l.allow(one, now.Add(time.Second)) {
		t.Error("the limit is not of one address and one second")
	}
	n := 0
	for i := range 3 * overall {
		if l.allow(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), now.Add(2*time.Second)) {
			n++
		}
	}
	if n != overall || len(l.count) > overall {
		t.Errorf("%d of many addresses, %d remembered", n, len(l.count))
	}
}

// TestAnswer is never longer than the question, nor a question.
func TestAnswer(t *testing.T) {
	q := question(7, 100)
	if len(q) != 100 || !isQuestion(q) {
		t.Error(q)
	}
	a := answer(q)
	if n, ok := answered(a); len(a) != 100 || !ok || n != 7 || isQuestion(a) {
		t.Error(a)
	}
	for _, bad := range [][]byte{nil, []byte("podlane!"), []byte("podlane?1234567"), make([]byte, 100)} {
		if _, ok := answered(bad); ok || isQuestion(bad) {
			t.Errorf("%q is taken for a probe", bad)
		}
	}
}
