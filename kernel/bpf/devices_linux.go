package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/overlay/fastpath"
)

// A linkState is a link with what would be passed by on it.
type linkState struct {
	netlink.Link
	queued  bool // has a qdisc of its own, which is not the none that a veth has
	ingress bool // has an ingress or clsact qdisc
	clsact  bool // it is a clsact qdisc
}

func linkStates() (map[int]*linkState, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	qdiscs, err := whole(func() ([]netlink.Qdisc, error) { return netlink.QdiscList(nil) })
	if err != nil {
		return nil, fmt.Errorf("qdiscs: %w", err)
	}
	states := map[int]*linkState{}
	for _, l := range links {
		states[l.Attrs().Index] = &linkState{Link: l}
	}
	for _, q := range qdiscs {
		s := states[q.Attrs().LinkIndex]
		switch {
		case s == nil: // a link made just now
		case q.Type() == "ingress" || q.Type() == "clsact":
			s.ingress, s.clsact = true, q.Type() == "clsact"
		case q.Attrs().Parent == netlink.HANDLE_ROOT && q.Type() != "noqueue":
			s.queued = true
		}
	}
	return states, nil
}

// listTries is how often a list is asked for that changed meanwhile.
const listTries = 20

// whole asks for a list until it is whole: where something changes while the kernel
// gives it, netlink says so by EINTR.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range listTries {
		if all, err = list(); !errors.Is(err, unix.EINTR) {
			return all, err
		}
	}
	return nil, err
}

// Devices reads what fastpath.Compile has to know of the node's links.
func (h *Handle) Devices() (map[string]fastpath.Device, error) {
	states, err := linkStates()
	if err != nil {
		return nil, err
	}
	own, err := h.pins()
	if err != nil {
		return nil, err
	}
	devices := map[string]fastpath.Device{}
	for index, s := range states {
		name := s.Attrs().Name
		others := programs(index, ebpf.AttachTCXEgress) + max(0, programs(index, ebpf.AttachTCXIngress)-own[name])
		if s.ingress {
			_, classifiers, err := filters(s.Link)
			if err != nil {
				return nil, err
			}
			others += classifiers
		}
		devices[name] = fastpath.Device{Queued: s.queued, Filtered: others > 0, Bare: s.Attrs().EncapType != "ether"}
	}
	return devices, nil
}

// programs tells how many there are at a device by tcx; none where the kernel has
// none, or the device has gone.
func programs(index int, at ebpf.AttachType) int {
	r, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: at})
	if err != nil {
		return 0
	}
	return len(r.Programs)
}

// pins gives how many links of ours are pinned for each device, of this layout and
// of others.
func (h *Handle) pins() (map[string]int, error) {
	layouts, err := os.ReadDir(filepath.Dir(h.dir))
	if err != nil {
		return nil, err
	}
	pins := map[string]int{}
	for _, l := range layouts {
		if withoutNumber(l.Name()) != withoutNumber(layout) {
			continue
		}
		files, err := os.ReadDir(filepath.Join(filepath.Dir(h.dir), l.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if _, dev, isLink := linkOf(f.Name()); isLink {
				pins[dev]++
			}
		}
	}
	return pins, nil
}

// IPsec gives which packets the policies of the node's namespace are for, but for those
// of single sockets.
func IPsec() ([]fastpath.Selector, error) {
	var all []fastpath.Selector
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		policies, err := whole(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(family) })
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
			return nil, nil // a kernel without
		}
		if err != nil {
			return nil, fmt.Errorf("IPsec policies: %w", err)
		}
		for _, p := range policies {
			passes := p.Action == netlink.XFRM_POLICY_ALLOW && len(p.Tmpls) == 0
			if p.Dir <= netlink.XFRM_DIR_FWD && p.Ifid == 0 && !passes { // one with an id is for that XFRM interface alone
				all = append(all, fastpath.Selector{Src: prefix(p.Src, family), Dst: prefix(p.Dst, family)})
			}
		}
	}
	return all, nil
}

// WatchIPsec gives a notice after a policy of the calling thread's namespace has been
// added, changed or deleted. Notices coalesce. Without IPsec in the kernel there is none, ever.
// A notice is nil; an error is the last that comes, where the socket fails.
func WatchIPsec(ctx context.Context) (<-chan error, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_XFRM)
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("IPsec policies: netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nl.XFRMNLGRP_POLICY - 1)}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("IPsec policies: subscribe: %w", err)
	}
	file, out := os.NewFile(uintptr(fd), "xfrm"), make(chan error, 2) // a notice and the error
	stop := context.AfterFunc(ctx, func() { _ = file.Close() })
	go func() {
		err := tell(file, out)
		if stop() { // otherwise ctx has ended
			out <- fmt.Errorf("IPsec policies: %w", err)
			_ = file.Close()
		}
	}()
	return out, nil
}

// tell gives a notice of each datagram, whatever it says, until the socket fails.
func tell(file *os.File, out chan<- error) error {
	buf := make([]byte, 4096)
	for {
		if _, err := file.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		if len(out) == 0 {
			out <- nil
		}
	}
}

// prefix undoes what the library takes an IPv6 address for that ends in zeros: one of
// IPv4, and with more than 32 bits none at all; that becomes one of 32.
func prefix(n *net.IPNet, family int) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, size := n.Mask.Size()
	a = a.Unmap()
	if family == netlink.FAMILY_V6 && a.Is4() {
		start := a.As4()
		var raw [16]byte
		copy(raw[:], start[:])
		if a = netip.AddrFrom16(raw); size == 0 {
			bits = 32
		}
	}
	return netip.PrefixFrom(a, bits)
}
