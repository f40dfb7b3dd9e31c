package link

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watch gives a notice after something of the namespace has changed that a
// reconciliation may have to put right: a link, an address, a route of ours, or a
// neighbour or FDB entry on one of our links. What Apply has changed is not told,
// save links: AddPod and DeletePod change those beside it. Notices coalesce: the channel holds one, however many changes
// there were. The first notice comes at once, since what happened before is not
// known. The channel is closed when ctx ends.
func (h *Handle) Watch(ctx context.Context) (<-chan struct{}, error) {
	const groups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEIGH-1) |
		1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) |
		1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1)
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
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	w := &watcher{file: os.NewFile(uintptr(fd), "netlink"), own: h.conn.pid, seen: all, out: make(chan struct{}, 1)}
	w.out <- struct{}{}
	stop := context.AfterFunc(ctx, func() { _ = w.file.Close() })
	go w.run(stop)
	return w.out, nil
}

type watcher struct {
	file *os.File
	own  uint32 // the port of the Handle's socket, whose changes are known
	seen map[int]device
	out  chan struct{}
}

// run ends when the file is closed.
func (w *watcher) run(stop func() bool) {
	defer close(w.out)
	defer stop()
	raw, err := w.file.SyscallConn()
	if err != nil {
		return
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var recvErr error
		err := raw.Read(func(fd uintptr) bool {
			n, _, recvErr = receiveNow(int(fd), buf)
			return recvErr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		// ENOBUFS: more happened than the socket could hold.
		if recvErr != nil || w.matters(buf[:n]) {
			w.notify()
		}
		if recvErr != nil && !errors.Is(recvErr, unix.ENOBUFS) {
			return
		}
	}
}

func (w *watcher) notify() {
	select {
	case w.out <- struct{}{}:
	default:
	}
}

// matters looks at every message, since it keeps the links by the way.
func (w *watcher) matters(b []byte) bool {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	any := false
	for _, m := range msgs {
		changed := w.message(m)
		link := m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == unix.RTM_DELLINK
		any = any || changed && (link || m.Header.Pid != w.own)
	}
	return any
}

func (w *watcher) message(m syscall.NetlinkMessage) bool {
	switch m.Header.Type {
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.link(m)
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		return len(m.Data) >= unix.SizeofNdMsg && w.seen[int(binary.NativeEndian.Uint32(m.Data[4:]))].ours()
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return len(m.Data) >= unix.SizeofRtMsg && m.Data[4] == unix.RT_TABLE_MAIN && m.Data[5] == Protocol
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return true
	}
	return false
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
		return had
	}
	d.VXLAN.Device = old.VXLAN.Device // not in the message
	w.seen[d.index] = d
	return !had || old != d
}
