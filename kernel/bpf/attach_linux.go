package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/podlane/podlane/overlay/fastpath"
)

// pin is where the link of a program at a device is pinned. The name says which
// program it is, so that to adopt it takes no more rights than to make it.
func (h *Handle) pin(dev string, role fastpath.Role) string {
	return filepath.Join(h.dir, string(role)+pinned+dev)
}

const pinned = "@"

// linkOf tells which link a file of the folder is; the maps are none.
func linkOf(name string) (role fastpath.Role, dev string, isLink bool) {
	r, dev, isLink := strings.Cut(name, pinned)
	return fastpath.Role(r), dev, isLink
}

// bestAttach asks the kernel for tcx by asking what is attached to loopback.
func bestAttach() Attach {
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: ebpf.AttachTCXIngress}); err != nil {
		return Clsact
	}
	return TCX
}

// Apply brings the maps to the State and takes programs away that it does not
// have, which is quick. The programs that it has more, or that someone else has taken from their
// devices, are AttachSome's. It goes on after an error; the next Apply does the rest.
func (h *Handle) Apply(want fastpath.State) error {
	states, err := linkStates()
	if err != nil {
		return err
	}
	h.want, h.index = want, map[string]int{}
	maps.DeleteFunc(h.took, func(a netip.Addr, _ uint32) bool { p, has := want.Pods[a]; return !has || p.Normal != "" })
	for index, s := range states {
		h.index[s.Attrs().Name] = index
	}
	return errors.Join(h.miss(states), h.update(), h.detachUnwanted())
}

// miss finds the programs that are no longer at their devices: with half of a flow on
// the fast path, the other half would be invalid.
func (h *Handle) miss(states map[int]*linkState) error {
	var errs []error
	for dev, d := range h.devices {
		s := states[d.index]
		if s == nil {
			continue // the device has gone, as detachUnwanted will find
		}
		there, err := d.there(s)
		if err == nil && !there {
			err = h.detach(dev, d)
			delete(h.devices, dev)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d attached) there(s *linkState) (bool, error) {
	if d.link != nil {
		return attachedAt(d.link) == d.index, nil
	}
	if !s.clsact {
		return false, nil
	}
	mine, _, err := filters(s.Link)
	return len(mine) > 0, err
}

// attachedAt gives the index of a link's device; 0 where it is at none any more.
func attachedAt(l link.Link) int {
	if info, err := l.Info(); err == nil && info.TCX() != nil {
		return int(info.TCX().Ifindex)
	}
	return 0
}

// AttachSome attaches at most n of the programs that the State of the last Apply
// has and the devices have not, and gives how many are left. By tcx each takes
// some 15 ms, in which the kernel waits for its readers. When none are left, programs of other layouts
// go, also where ours cannot be attached: nobody keeps their maps any more, and for packets there is the
// normal path. Before the first Apply it leaves what was adopted as it is.
func (h *Handle) AttachSome(n int) (left int, err error) {
	if h.index == nil {
		return 0, nil
	}
	var errs []error
	for _, role := range []fastpath.Role{fastpath.ToPod, fastpath.FromPod} {
		for dev, r := range h.want.Devices {
			i, exists := h.index[dev]
			if r != role || !exists || h.stays(dev) {
				continue
			}
			if n == 0 {
				left++
				continue
			}
			if err := h.attachTo(dev, i, role); err != nil { // it has cost next to nothing
				errs = append(errs, err)
				continue
			}
			n--
		}
	}
	errs = append(errs, h.update())
	if left == 0 && !h.alone {
		err := errors.Join(forgetOthers(h.dir), RemoveOthers(h.dir))
		h.alone = err == nil
		errs = append(errs, err)
	}
	return left, errors.Join(errs...)
}

// Takes says that packets of a local pod take the fast path, by its address, or took it when an
// agent before left it, and may again.
func (h *Handle) Takes(a netip.Addr) bool {
	p, has := h.pods[a]
	return has && p.Normal == 0 || h.took[a] != 0
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
	if err := os.Remove(h.pin(dev, d.role)); err != nil && !errors.Is(err, os.ErrNotExist) {
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
	_ = os.Remove(h.pin(dev, role)) // of a device of this name that has gone
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: index, Program: h.program(role), Attach: ebpf.AttachTCXIngress, Anchor: link.Tail(),
	})
	if err != nil {
		return nil, err
	}
	if err := l.Pin(h.pin(dev, role)); err != nil {
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
		if role, dev, isLink := linkOf(f.Name()); isLink {
			errs = append(errs, h.adoptLink(dev, role))
		}
	}
	return errors.Join(errs...)
}

// adoptLink replaces the program of a pinned link. A pin that is of no use any more
// goes; so does a link whose program cannot be replaced: its device has gone meanwhile,
// or AttachSome makes it anew.
func (h *Handle) adoptLink(dev string, role fastpath.Role) error {
	l, err := link.LoadPinnedLink(h.pin(dev, role), nil)
	if err != nil {
		return os.Remove(h.pin(dev, role))
	}
	d := attached{role: role, index: attachedAt(l), link: l}
	if d.index == 0 || h.attach != TCX {
		return h.detach(dev, d)
	}
	if err := l.Update(h.program(role)); err != nil {
		return h.detach(dev, d)
	}
	h.devices[dev] = d
	return nil
}
