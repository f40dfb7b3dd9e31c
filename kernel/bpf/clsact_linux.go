package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/overlay/fastpath"
)

// priority and handle are our filter's place in a clsact qdisc. The same again
// replaces the program in one step.
const (
	priority = 0xB112
	handle   = 1
)

// addFilter puts the program into the ingress half of a clsact qdisc, which it
// makes where there is none.
func addFilter(index int, p *ebpf.Program, role fastpath.Role) error {
	q := &netlink.GenericQdisc{
		QdiscAttrs: clsactAttrs(index), QdiscType: "clsact",
	}
	if err := netlink.QdiscAdd(q); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("clsact: %w", err)
	}
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL,
		},
		Fd: p.FD(), Name: programName(role), DirectAction: true,
	})
}

func clsactAttrs(index int) netlink.QdiscAttrs {
	return netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
}

func programName(role fastpath.Role) string {
	if role == fastpath.ToPod {
		return objectsProgPlToPod
	}
	return objectsProgPlFromPod
}

// ours tells a filter of ours, and what its program does.
func ours(f netlink.Filter) (fastpath.Role, bool) {
	b, isBPF := f.(*netlink.BpfFilter)
	if !isBPF || b.Priority != priority {
		return "", false
	}
	switch b.Name {
	case objectsProgPlFromPod:
		return fastpath.FromPod, true
	case objectsProgPlToPod:
		return fastpath.ToPod, true
	}
	return "", false
}

// removeFilter takes our filter from a device. The qdisc stays: to take it away
// has the kernel drop what the device sends meanwhile. A device that has gone is
// no error.
func removeFilter(index int) error {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil
	}
	mine, _, err := filters(l)
	errs := []error{err}
	for _, f := range mine {
		if err := netlink.FilterDel(f); !errors.Is(err, unix.ENODEV) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// RemoveQdiscs removes the empty clsact qdiscs that the fast path has left, for an
// uninstall: it may cost a few packets that are being sent.
func RemoveQdiscs() error {
	states, err := linkStates()
	errs := []error{err}
	for _, s := range states {
		if !s.clsact {
			continue
		}
		mine, others, err := filters(s.Link)
		if err != nil || others+len(mine) > 0 {
			continue
		}
		errs = append(errs, netlink.QdiscDel(&netlink.GenericQdisc{QdiscAttrs: clsactAttrs(s.Attrs().Index), QdiscType: "clsact"}))
	}
	return errors.Join(errs...)
}

// filters gives our filters of a device, and how many there are of others.
func filters(l netlink.Link) (mine []netlink.Filter, others int, err error) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		list, err := whole(func() ([]netlink.Filter, error) { return netlink.FilterList(l, parent) })
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOENT) {
			return nil, 0, fmt.Errorf("filters of %s: %w", l.Attrs().Name, err)
		}
		for _, f := range list {
			if _, is := ours(f); is {
				mine = append(mine, f)
			} else if f.Attrs().Handle != 0 {
				others++
			}
		}
	}
	return mine, others, nil
}

// adoptFilters takes over the filters that an agent before left, or removes them
// where this one attaches by tcx. One that cannot be taken over goes, as in adoptLink.
func (h *Handle) adoptFilters() error {
	return eachFilter(func(l netlink.Link, role fastpath.Role) error {
		if h.attach == Clsact && h.attachTo(l.Attrs().Name, l.Attrs().Index, role) == nil {
			return nil
		}
		return removeFilter(l.Attrs().Index)
	})
}

// removeFilters removes our filters from all devices.
func removeFilters() error {
	return eachFilter(func(l netlink.Link, _ fastpath.Role) error { return removeFilter(l.Attrs().Index) })
}

// eachFilter calls do for each link that has a filter of ours.
func eachFilter(do func(netlink.Link, fastpath.Role) error) error {
	states, err := linkStates()
	errs := []error{err}
	for _, s := range states {
		if !s.ingress {
			continue
		}
		mine, _, err := filters(s.Link)
		errs = append(errs, err)
		if len(mine) > 0 {
			role, _ := ours(mine[0])
			errs = append(errs, do(s.Link, role))
		}
	}
	return errors.Join(errs...)
}
