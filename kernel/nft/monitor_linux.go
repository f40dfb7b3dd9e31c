package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Event is a change of one of our tables by someone else.
type Event struct {
	Table Table
	// Gone says that the table itself was deleted.
	Gone bool
	// Lost says that notices were lost, so that anything may have changed; Table is
	// then empty.
	Lost bool
	Port uint32 // the sender's netlink port
}

// Monitor listens for changes of our tables by others than one connection.
type Monitor struct{ c *Conn }

// NewMonitor begins to listen, in the namespace of a file descriptor or with 0 of
// the calling thread. Changes by the connection with the port number own (see
// Conn.PortID) are dropped in the kernel.
func NewMonitor(netns int, own uint32) (*Monitor, error) {
	c, err := Dial(netns)
	if err != nil {
		return nil, err
	}
	filter, err := bpf.Assemble(dropPort(own))
	if err == nil {
		err = c.nl.SetBPF(filter)
	}
	if err == nil {
		err = c.nl.JoinGroup(group)
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("nft monitor: %w", err)
	}
	return &Monitor{c}, nil
}

// dropPort drops the datagrams whose first message has the sender own. All
// messages of a datagram are of one transaction.
func dropPort(own uint32) []bpf.Instruction {
	const portOffset = 12 // nlmsg_pid, in the machine's byte order; a load is in network order
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: portOffset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: swapped(own), SkipTrue: 1},
		bpf.RetConstant{Val: ^uint32(0)},
		bpf.RetConstant{Val: 0},
	}
}

// Close ends Run.
func (m *Monitor) Close() error { return m.c.Close() }

// Away has f run while the monitor does not listen. Where somebody does, the kernel
// writes a notice of each element, sent or not, which takes as long as the element
// itself. missed says that others than conn may have changed something meanwhile,
// as the Event Lost does: each transaction that changes something raises the
// generation by one, so those that f commits must each change something.
func (m *Monitor) Away(conn *Conn, f func() error) (missed bool, err error) {
	before, err := conn.Generation()
	if err != nil {
		return false, err
	}
	if err := m.c.nl.LeaveGroup(group); err != nil {
		return false, fmt.Errorf("nft monitor: %w", err)
	}
	done := conn.done
	err = f()
	if again := m.c.nl.JoinGroup(group); again != nil {
		_ = m.c.nl.SetReadDeadline(time.Unix(1, 0)) // ends Run: who no longer hears must not go on
		return true, errors.Join(err, fmt.Errorf("nft monitor: %w", again))
	}
	after, genErr := conn.Generation()
	return genErr != nil || after-before != conn.done-done, errors.Join(err, genErr)
}

// Run gives the events to f until the context ends or the socket fails. Many
// changes of one table in a row may come as one event.
func (m *Monitor) Run(ctx context.Context, f func(Event)) error {
	stop := context.AfterFunc(ctx, func() { _ = m.c.nl.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		datagram, err := m.c.receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS):
			f(Event{Lost: true})
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("nft monitor: %w", err)
		}
		notices(datagram, f)
	}
}

// notices gives an event for each run of messages about one table.
func notices(datagram []byte, f func(Event)) {
	var last Event
	messages(datagram, func(m message) bool {
		e, ours := notice(m)
		if ours && e != last {
			last = e
			f(e)
		}
		return true
	})
}

// notice reads the table's name: it is attribute 1 of the message of every object.
func notice(m message) (e Event, ours bool) {
	typ := m.typ & 0xff
	if m.typ>>8 != subsystem || typ == msgNewGen || len(m.data) < 4 {
		return Event{}, false
	}
	e = Event{Table: Table{Family: m.family()}, Gone: typ == msgDelTable, Port: m.port}
	each(m.attributes(), func(typ uint16, v []byte) {
		if typ == 1 {
			e.Table.Name = cstr(v)
		}
	})
	return e, strings.HasPrefix(e.Table.Name, Prefix)
}
