package socket

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/bpf"
)

// layout is raised with every change of the maps that an older program could
// not read.
const layout = "socket-v1"

// Config says where the pins are.
type Config struct {
	// Dir is a folder of a BPF file system, this node's own. It is made.
	Dir string
	// Cgroup is where the cgroup of this node's pods is looked for: see PodsCgroup.
	Cgroup string
}

// Handle is the translation of one node. It is not for several goroutines.
type Handle struct {
	dir, cgroup string
	objects     objectsObjects
	links       map[ebpf.AttachType]link.Link
	alone       bool // no programs of other layouts are left
}

// attachments are the programs' places at a cgroup, and the files of their pins.
var attachments = map[ebpf.AttachType]string{
	ebpf.AttachCGroupInet4Connect: "connect4", ebpf.AttachCGroupInet6Connect: "connect6",
	ebpf.AttachCgroupInet4GetPeername: "getpeername4", ebpf.AttachCgroupInet6GetPeername: "getpeername6",
}

// order is that in which they are attached: a connection that is translated shows
// its Service from the start.
var order = []ebpf.AttachType{
	ebpf.AttachCgroupInet4GetPeername, ebpf.AttachCgroupInet6GetPeername, ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect,
}

func (h *Handle) program(at ebpf.AttachType) *ebpf.Program {
	return map[ebpf.AttachType]*ebpf.Program{
		ebpf.AttachCGroupInet4Connect: h.objects.PlConnect4, ebpf.AttachCGroupInet6Connect: h.objects.PlConnect6,
		ebpf.AttachCgroupInet4GetPeername: h.objects.PlGetpeername4, ebpf.AttachCgroupInet6GetPeername: h.objects.PlGetpeername6,
	}[at]
}

// Open loads the programs and takes over the maps that an agent before left, with
// their content. Its error is bpf.ErrUnavailable where the kernel lacks something.
// Attach then puts the programs in force.
func Open(c Config) (*Handle, error) {
	h := &Handle{dir: filepath.Join(c.Dir, layout), cgroup: c.Cgroup, links: map[ebpf.AttachType]link.Link{}}
	if err := bpf.MakeDir(h.dir); err != nil {
		return nil, err
	}
	if _, err := cgroup2(c.Cgroup); err != nil {
		return nil, err
	}
	options := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: h.dir}}
	err := loadObjectsObjects(&h.objects, options)
	if errors.Is(err, ebpf.ErrMapIncompatible) { // of a build that did not keep to layout
		if err = bpf.RemovePins(h.dir); err == nil {
			err = loadObjectsObjects(&h.objects, options)
		}
	}
	if err != nil {
		return nil, bpf.Unavailable(err)
	}
	return h, nil
}

// Attach puts the programs in force at the cgroup of the node's pods, each in one
// step in place of an older one, and gives that cgroup. Where they are there already it costs
// next to nothing, and is to be called often: the kubelet may have made the cgroup anew, or someone have detached a
// program. Before there is such a cgroup it is an error.
func (h *Handle) Attach() (string, error) {
	dir, err := PodsCgroup(h.cgroup)
	if err != nil {
		return "", err
	}
	f, err := os.Open(dir)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", fmt.Errorf("%s: %w", dir, err)
	}
	if !h.attachedTo(st.Ino) {
		if err := h.attachAll(int(f.Fd()), st.Ino); err != nil {
			return "", fmt.Errorf("%s: %w", dir, errors.Join(err, h.removeOthers()))
		}
	}
	return dir, h.removeOthers()
}

func (h *Handle) attachAll(cgroup int, id uint64) error {
	for _, at := range order {
		if err := h.attach(at, cgroup, id); err != nil {
			return fmt.Errorf("%s: %w", attachments[at], err)
		}
	}
	return nil
}

// removeOthers takes away what programs of other layouts are left, also where ours cannot be attached:
// nobody keeps their maps any more, and for connections there are the rules.
func (h *Handle) removeOthers() error {
	if h.alone {
		return nil
	}
	err := bpf.RemoveOthers(h.dir)
	h.alone = err == nil
	return err
}

// attachedTo says that all programs are at the cgroup of a number, which one that is
// made anew under the same name does not have.
func (h *Handle) attachedTo(id uint64) bool {
	for _, at := range order {
		l := h.links[at]
		if l == nil || !isAt(l, id) {
			return false
		}
	}
	return true
}

func isAt(l link.Link, cgroup uint64) bool {
	info, err := l.Info()
	return err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == cgroup
}

// attach replaces the program of a pinned link to the cgroup, or makes a link. A
// link is pinned, or not there at all.
func (h *Handle) attach(at ebpf.AttachType, cgroup int, id uint64) error {
	pin := filepath.Join(h.dir, attachments[at])
	if old := h.links[at]; old != nil {
		_ = old.Close()
		delete(h.links, at)
	}
	if l, err := link.LoadPinnedLink(pin, nil); err == nil {
		if isAt(l, id) {
			h.links[at] = l
			return l.Update(h.program(at))
		}
		_ = l.Detach() // of a cgroup that has gone: detached already
		_ = l.Close()
	}
	if err := os.Remove(pin); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: cgroup, Program: h.program(at), Attach: at})
	if err != nil {
		return err
	}
	if err := l.Pin(pin); err != nil {
		_ = l.Close()
		return err
	}
	h.links[at] = l
	return nil
}

// Close lets go of all. Programs and maps stay in force.
func (h *Handle) Close() {
	for _, l := range h.links {
		_ = l.Close()
	}
	_ = h.objects.Close()
}

// Remove takes the translation away: connections that it made go on. dir is
// Config.Dir; nothing there is no error.
func Remove(dir string) error {
	own := filepath.Join(dir, layout)
	err := errors.Join(bpf.RemoveOthers(own), bpf.RemoveDir(own))
	_ = os.Remove(dir) // where nothing else is in it
	return err
}
