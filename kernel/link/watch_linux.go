package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Watch gives a notice after something of the namespace has changed that a
// reconciliation may have to put right: a link, an address, a route of ours, a
// neighbour or FDB entry on one of our links, or forwarding that was turned off. What Apply and AddPod do is not told,
// where the kernel lets it be known from others' changes: an Apply that follows need read
// nothing back. What DeletePod removes may still be wanted, and is told. Notices coalesce:
// the channel holds one, however many changes there were. The first notice comes at once,
// since what happened before is not known.
//
// A notice is nil. An error is the last that comes: there was more than the socket could
// hold, or the socket fails; Watch then has to be called again. The channel is closed
// after it, and when ctx ends.
func (h *Handle) Watch(ctx context.Context) (<-chan error, error) {
	const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
		1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) |
		1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) |
		1<<(unix.RTNLGRP_IPV4_NETCONF-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	// The socket must be in the Handle's namespace, whatever the calling thread's.
	if err := h.sysctl.here(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("netlink socket: subscribe: %w", err)
	}
	all, err := h.conn.devices()
	if err == nil {
		err = deaf(fd, all)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	h.known.clear() // of what was done before, nobody may have been told
	w := &watcher{file: os.NewFile(uintptr(fd), "netlink"), own: h.conn.pid, known: h.known, seen: all, out: make(chan error, 2)}
	w.notify()
	stop := context.AfterFunc(ctx, func() { _ = w.file.Close() })
	go w.run(stop)
	return w.out, nil
}

// deafTo bounds the links whose neighbours are filtered out: they are tried one by one.
const deafTo = 64

// deaf keeps the neighbours on links that are not ours from waking the watcher, which
// has nothing to do with them: a node that talks to a thousand others on its segment has
// some of those change all the time. Such links that come later are sorted out by it.
func deaf(fd int, all map[int]device) error {
	const typeOffset, indexOffset = 4, unix.NLMSG_HDRLEN + 4 // of nlmsghdr and ndmsg
	// A load is in network order, and netlink in the machine's.
	filter := []bpf.Instruction{
		bpf.LoadAbsolute{Off: typeOffset, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: swapped(unix.RTM_NEWNEIGH, 2), SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: swapped(unix.RTM_DELNEIGH, 2), SkipTrue: 1},
		bpf.RetConstant{Val: math.MaxUint32},
		bpf.LoadAbsolute{Off: indexOffset, Size: 4},
	}
	indexes := slices.Sorted(maps.Keys(all))
	indexes = slices.DeleteFunc(indexes, func(i int) bool { return all[i].ours() })
	for _, i := range indexes[:min(len(indexes), deafTo)] {
		filter = append(filter, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: swapped(uint32(i), 4), SkipTrue: 1}, bpf.RetConstant{})
	}
	raw, err := bpf.Assemble(append(filter, bpf.RetConstant{Val: math.MaxUint32}))
	if err != nil {
		return fmt.Errorf("netlink socket: filter: %w", err)
	}
	program := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	if err != nil {
		return fmt.Errorf("netlink socket: filter: %w", err)
	}
	return nil
}

// swapped gives what a load in network order makes of a number of 2 or 4 bytes in the
// machine's.
func swapped(n uint32, size int) uint32 {
	var b [4]byte
	if size == 2 {
		binary.NativeEndian.PutUint16(b[2:], uint16(n))
	} else {
		binary.NativeEndian.PutUint32(b[:], n)
	}
	return binary.BigEndian.Uint32(b[:])
}

type watcher struct {
	file *os.File
	own  uint32 // the port of the Handle's socket, whose changes are known
	*known
	seen map[int]device
	out  chan error // has room for a notice and the error of the end
}

// run ends when the file is closed, or with an error. Where notices were lost, links may
// be missing from seen, so that this is an end too.
func (w *watcher) run(stop func() bool) {
	defer close(w.out)
	err := w.read()
	if stop() { // otherwise ctx has ended, and has closed the file
		w.out <- fmt.Errorf("netlink socket: notices: %w", err)
		_ = w.file.Close()
	}
}

func (w *watcher) read() error {
	raw, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, recvErr = receiveNow(int(fd), buf)
			return recvErr != unix.EAGAIN
		})
		if err = errors.Join(err, recvErr); err != nil {
			return err
		}
		if w.matters(buf[:n]) {
			w.notify()
		}
	}
}

// notify is of run's goroutine alone, once that runs.
func (w *watcher) notify() {
	if len(w.out) == 0 {
		w.out <- nil
	}
}

// matters looks at every message, since it keeps the links by the way.
func (w *watcher) matters(b []byte) bool {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	some := false
	for _, m := range msgs {
		changed := w.message(m)
		link := m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == unix.RTM_DELLINK
		some = some || changed && (link || m.Header.Pid != w.own)
	}
	return some
}

func (w *watcher) message(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.link(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(m.Data) < unix.SizeofNdMsg {
			return false
		}
		index := int(binary.NativeEndian.Uint32(m.Data[4:]))
		return w.seen[index].ours() && !w.isGone(index)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if len(m.Data) < unix.SizeofRtMsg || m.Data[4] != unix.RT_TABLE_MAIN || m.Data[5] != Protocol {
			return false
		}
		r, ok := parseRoute(m.Data)
		return !ok || !w.isGone(r.index)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return w.address(m)
	case unix.RTM_NEWNETCONF:
		return w.conf(m.Data)
	}
	return false
}

// conf tells that forwarding was turned off on the whole machine ("sysctl --system" and Docker do) or on our VXLAN link, or
// that the test of sources there was made strict. A pod's link has no settings of which nothing else is told.
func (w *watcher) conf(b []byte) bool {
	const (
		head         = 4 // struct netconfmsg, padded
		attrIndex    = 1 // NETCONFA_*, uapi/linux/netconf.h
		attrForward  = 2
		attrRPFilter = 3
		all          = -1
	)
	index, forward, filter := 0, uint32(1), uint32(0)
	for a := range attributes(b[min(head, len(b)):]) {
		switch a.typ {
		case attrIndex:
			index = int(int32(a.u32()))
		case attrForward:
			forward = a.u32()
		case attrRPFilter:
			filter = a.u32()
		}
	}
	d := w.seen[index]
	ours := d.ours() && d.Kind == VXLAN && !w.isGone(index)
	return forward == 0 && (index == all || ours) || filter == 1 && ours
}

// address tells of all addresses, save the link-local ones of our links, which Read does
// not have either, and what the Handle has done itself.
func (w *watcher) address(m syscall.NetlinkMessage) bool {
	a, ok := parseAddress(m.Data)
	if !ok || !w.seen[a.index].ours() {
		return true
	}
	addr := a.prefix.Addr()
	switch {
	case addr.Is6() && addr.IsLinkLocalUnicast(), w.isGone(a.index):
		return false
	}
	return m.Header.Type == unix.RTM_DELADDR || !w.hasPut(a.index, addr)
}

// link tells whether more has changed than what nobody here looks at: the kernel
// tells of a link's every change.
func (w *watcher) link(m syscall.NetlinkMessage) bool {
	d, err := parseLink(m.Data)
	if err != nil {
		return false
	}
	if len(m.Data) > 0 && m.Data[0] == unix.AF_BRIDGE { // a bridge's view of its port
		return false
	}
	old, had := w.seen[d.index]
	if m.Header.Type == unix.RTM_DELLINK {
		delete(w.seen, d.index)
		told := had && !w.isGone(d.index)
		w.forget(d)
		return told
	}
	d.VXLAN.Device = old.VXLAN.Device // not in the message
	w.seen[d.index] = d
	if d.ours() && d.Kind == Veth {
		old.flags = d.flags // whether it is up is in Link; the carrier is the pod's end
	}
	made := (!had || old.Down) && w.isMade(d)
	return (!had || old != d) && !made && !w.isGone(d.index)
}
