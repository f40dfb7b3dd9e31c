package world

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/test/oracle/packet"
)

// Place is where a packet begins or is seen.
type Place uint8

// The places. The first two are wires.
const (
	Pods Place = iota
	Uplink
	Node
	Nowhere
)

func (p Place) String() string { return [...]string{"pods", "uplink", "node", "nowhere"}[p] }

// Shot is a connection to try.
type Shot struct {
	From     Place
	Source   netip.Addr
	Protocol cluster.Protocol
	To       netip.AddrPort
	// Port is the source port; 0 takes one that was not taken lately.
	Port uint16
	// Flags are TCP's, of a packet that does not begin a connection; 0 is SYN.
	Flags byte
}

// Outcome is what became of a Shot. Of a connection refused at its end, the end is
// told.
type Outcome struct {
	// At is where the packet came out, with these addresses.
	At       Place
	Src, Dst netip.AddrPort
	// Refused says that it was refused on its way, and Kind how.
	Refused bool
	Kind    packet.Kind
	// Changed says that the source address is another one than that of the Shot.
	Changed bool
}

// Lost says that nothing was seen of it.
func (o Outcome) Lost() bool { return o.At == Nowhere && !o.Refused }

const (
	burst    = 64              // packets between two readings
	patience = 5 * time.Second // for what must come
	settle   = time.Millisecond

	firstCookie = 1 << 16 // no port or length, for those who read packets
)

// batch is what is under way.
type batch struct {
	cookie uint32 // the next one
	first  uint32 // of the batch
	shots  []Shot
	out    []Outcome
}

// Shoot tries connections, all of them new to the node, and gives what became of
// each.
func (w *World) Shoot(shots []Shot) ([]Outcome, error) {
	var out []Outcome
	err := w.Do(func() error {
		if err := w.fire(shots); err != nil {
			return err
		}
		out = w.out
		return w.sentinels()
	})
	return out, err
}

func (w *World) fire(shots []Shot) error {
	w.begin(shots)
	for i := range shots {
		if err := w.shoot(i); err != nil {
			return err
		}
		if i%burst == burst-1 {
			if err := w.collect(); err != nil {
				return err
			}
		}
	}
	return w.collect()
}

func (b *batch) begin(shots []Shot) {
	b.first, b.shots, b.out = b.cookie, shots, make([]Outcome, len(shots))
	b.cookie += uint32(len(shots))
	for i := range b.out {
		b.out[i].At = Nowhere
	}
}

// shoot sends one. A raw socket may refuse to: what has no route, for instance.
func (w *World) shoot(i int) error {
	s := w.shots[i]
	cookie := w.first + uint32(i)
	port := s.Port
	if port == 0 {
		port = uint16(1024 + cookie%60000)
	}
	p := packet.Probe{Src: netip.AddrPortFrom(s.Source, port), Dst: s.To, Protocol: s.Protocol, Cookie: cookie, Flags: s.Flags}
	var err error
	if s.From == Node {
		err = w.sendFromNode(p)
	} else {
		err = w.ends[s.From].send(p)
	}
	switch {
	case errors.Is(err, unix.EPERM):
		return nil // dropped by a rule on its way out
	case err != nil:
		return fmt.Errorf("send %s %s to %s: %w", s.Protocol, s.Source, s.To, err)
	}
	return nil
}

// collect reads what there is.
func (w *World) collect() error {
	for i := range w.ends {
		for {
			b, err := w.ends[i].read()
			if err != nil {
				return err
			}
			if b == nil {
				break
			}
			if s, ok := packet.Parse(b); ok {
				w.note(Place(i), s)
			}
		}
	}
	for i := range w.node {
		for more := true; more; {
			s, ok, again, err := w.node[i].read()
			if err != nil {
				return err
			}
			if ok {
				w.note(Node, s)
			}
			more = again
		}
	}
	return nil
}

// note takes down a packet. One that arrived is not refused on its way, but by the
// node as its end.
func (w *World) note(at Place, s packet.Seen) {
	i := s.Cookie - w.first
	if i >= uint32(len(w.out)) {
		return
	}
	o := &w.out[i]
	if s.Kind != packet.Itself {
		if o.At == Nowhere {
			o.Refused, o.Kind = true, s.Kind
		}
		return
	}
	*o = Outcome{At: at, Src: s.Src, Dst: s.Dst, Changed: s.Src.Addr() != w.shots[i].Source}
}

// await waits until the wires carry packets: the kernel drops what is sent on a new
// link for a while, which is longer on a busy machine.
func (w *World) await() error {
	var err error
	for start := time.Now(); time.Since(start) < patience; {
		w.begin(nil)
		if err = w.through(20 * time.Millisecond); err == nil {
			return nil
		}
	}
	return err
}

// sentinels waits until packets sent after all others came through, on all ways.
func (w *World) sentinels() error { return w.through(patience) }

func (w *World) through(limit time.Duration) error {
	kept := w.batch
	from, own := netip.MustParseAddr("198.18.4.1"), netip.AddrPortFrom(PodWire[0].Addr(), 9)
	far, pod := netip.MustParseAddrPort("198.18.3.1:9"), netip.AddrPortFrom(w.pod, 9)
	w.begin([]Shot{
		{From: Pods, Source: from, Protocol: cluster.UDP, To: far},
		{From: Uplink, Source: from, Protocol: cluster.UDP, To: pod},
		{From: Uplink, Source: from, Protocol: cluster.UDP, To: own},
		{From: Node, Source: UplinkWire[0].Addr(), Protocol: cluster.UDP, To: own},
	})
	marks := w.batch
	for i := range marks.shots {
		if err := w.shoot(i); err != nil {
			return err
		}
	}
	for start := time.Now(); time.Since(start) < limit; time.Sleep(settle / 4) {
		if err := w.collectBoth(&kept, &marks); err != nil {
			return err
		}
		if !slices.ContainsFunc(marks.out, Outcome.Lost) {
			time.Sleep(settle)
			return w.collectBoth(&kept, &marks)
		}
	}
	return fmt.Errorf("the node lets no packet through: %v", marks.out)
}

// collectBoth takes down what belongs to either batch.
func (w *World) collectBoth(kept, marks *batch) error {
	w.first = kept.first
	w.shots = append(kept.shots[:len(kept.shots):len(kept.shots)], marks.shots...)
	w.out = append(kept.out[:len(kept.out):len(kept.out)], marks.out...)
	err := w.collect()
	copy(kept.out, w.out)
	copy(marks.out, w.out[len(kept.out):])
	return err
}
