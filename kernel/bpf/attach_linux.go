package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/podlane/podlane/overlay/fastpath"
)

const pinPrefix = "at-"

// deviceOf tells which device a pin is the link of.
func deviceOf(pin string) (dev string, isLink bool) { return strings.CutPrefix(pin, pinPrefix) }

func (h *Handle) pin(dev string) string { return filepath.Join(h.dir, pinPrefix+dev) }

// bestAttach asks the kernel for tcx by asking what is attached to loopback.
func bestAttach() Attach {
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}); err != nil {
		return Clsact
	}
	return TCX
}

// Apply brings the maps to the State and takes programs away that it does not
// have, which is quick. The programs that it has more are AttachSome's. It goes on after an
// error; the next Apply does the rest.
func (h *Handle) Apply(want fastpath.State) error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("links: %w", err)
	}
	h.want, h.index = want, map[string]int{}
	for _, l := range links {
		h.index[l.Attrs().Name] = l.Attrs().Index
	}
	return errors.Join(h.update(), h.detachUnwanted())
}

// AttachSome attaches at most n of the programs that the State of the last Apply
// has and the devices have not, and gives how many are left. By tcx each takes
// some 15 ms, in which the kernel waits for its readers.
func (h *Handle) AttachSome(n int) (left int, err error) {
	var errs []error
	for _, role := range []fastpath.Role{fastpath.ToPod, fastpath.FromPod} {
		for dev, r := range h.want.Devices {
			i, exists := h.index[dev]
			if r != role || !exists || h.stays(dev) {
				continue
			}
			if n--; n < 0 {
				left++
				continue
			}
			errs = append(errs, h.attachTo(dev, i, role))
		}
	}
	return left, errors.Join(append(errs, h.update())...)
}

// stays says that a device has the program that it is to have.
func (h *Handle) stays(dev string) bool {
	d, has := h.devices[dev]
	return has && h.want.Devices[dev] == d.role && h.index[dev] == d.index
}

func (h *Handle) detachUnwanted() error {
	var errs []error
	for dev, d := range h.devices {
		if !h.stays(dev) {
			errs = append(errs, h.detach(dev, d))
			delete(h.devices, dev)
		}
	}
	return errors.Join(errs...)
}

func (h *Handle) detach(dev string, d attached) error {
	if d.link == nil {
		return removeFilter(d.index)
	}
	_ = d.link.Detach() // of a device that has gone: detached already
	_ = d.link.Close()
	if err := os.Remove(h.pin(dev)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (h *Handle) attachTo(dev string, index int, role fastpath.Role) error {
	d := attached{role: role, index: index}
	var err error
	if h.attach == Clsact {
		err = addFilter(index, h.program(role), role)
	} else {
		d.link, err = h.attachTCX(dev, index, role)
	}
	if err != nil {
		return fmt.Errorf("%s at %s: %w", role, dev, err)
	}
	h.devices[dev] = d
	return nil
}

// attachTCX attaches behind all programs of others. The link is pinned, or not
// there at all.
func (h *Handle) attachTCX(dev string, index int, role fastpath.Role) (link.Link, error) {
	_ = os.Remove(h.pin(dev)) // of a device of this name that has gone
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: index, Program: h.program(role), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail(),
	})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(h.pin(dev)); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

func (h *Handle) program(role fastpath.Role) *ebpf.Program {
	if role == fastpath.ToPod {
		return h.objects.PlToPod
	}
	return h.objects.PlFromPod
}

// adopt takes over the devices that an agent before attached to, and replaces
// the program at each.
func (h *Handle) adopt() error {
	errs := []error{h.adoptFilters()}
	files, err := os.ReadDir(h.dir)
	errs = append(errs, err)
	for _, f := range files {
		if dev, isLink := deviceOf(f.Name()); isLink {
			errs = append(errs, h.adoptLink(dev))
		}
	}
	return errors.Join(errs...)
}

// adoptLink replaces the program of a pinned link. A pin that is of no use any more
// goes.
func (h *Handle) adoptLink(dev string) error {
	l, err := link.LoadPinnedLink(h.pin(dev), nil)
	if err != nil {
		return os.Remove(h.pin(dev))
	}
	d := attached{link: l}
	info, err := l.Info()
	if err == nil && info.TCX() != nil {
		d.index, d.role = int(info.TCX().Ifindex), roleOf(info.Program)
	}
	if d.index == 0 || d.role == "" || h.attach != TCX {
		return h.detach(dev, d)
	}
	if err := l.Update(h.program(d.role)); err != nil {
		return errors.Join(fmt.Errorf("replace the program at %s: %w", dev, err), h.detach(dev, d))
	}
	h.devices[dev] = d
	return nil
}

// roleOf tells a program of ours by its name.
func roleOf(id ebpf.ProgramID) fastpath.Role {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return roleNamed(info.Name)
}

func roleNamed(program string) fastpath.Role {
	switch program {
	case objectsProgPlFromPod:
		return fastpath.FromPod
	case objectsProgPlToPod:
		return fastpath.ToPod
	}
	return ""
}
