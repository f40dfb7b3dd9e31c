package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/overlay/fastpath"
)

// Attach is how programs are attached to devices.
type Attach string

// The ways.
const (
	TCX    Attach = "tcx"    // Linux 6.6; a link pinned beside the maps
	Clsact Attach = "clsact" // a filter on the clsact qdisc, which stays with the device
)

// layout is raised with every change of the maps that an older program could
// not read.
const layout = "v2"

// Config says where the pins are and how to attach.
type Config struct {
	// Dir is a folder of a BPF file system, this node's own. It is made.
	Dir    string
	Attach Attach // "": TCX where the kernel has it, else Clsact
}

// Handle is the fast path of one node: the network namespace of the thread that
// calls. It is not for several goroutines.
type Handle struct {
	dir     string
	attach  Attach
	objects objectsObjects
	pods    map[netip.Addr]objectsPod
	peers   map[netip.Prefix]objectsPeer
	devices map[string]attached
	// want is the State of the last Apply, index the devices that there were.
	want  fastpath.State
	index map[string]int
	alone bool // no programs of other layouts are left
	// took are the local pods that took the fast path when this was opened, and that no State
	// since has left out.
	took map[netip.Addr]uint32
	// untold says why conntrack is not told of connections; "" where it is.
	untold string
}

// attached is a program at a device's ingress.
type attached struct {
	role  fastpath.Role
	index int
	link  link.Link // nil with Clsact
}

// Open loads the programs and takes over what an agent before left: its maps with
// their content and its attached programs, each of which is replaced in one step. Its error is
// ErrUnavailable where the kernel or this process's rights lack something, and ErrRefused where they do not.
func Open(c Config) (*Handle, error) {
	h := &Handle{
		dir: filepath.Join(c.Dir, layout), attach: c.Attach, devices: map[string]attached{},
		pods: map[netip.Addr]objectsPod{}, peers: map[netip.Prefix]objectsPeer{},
	}
	if err := MakeDir(h.dir); err != nil {
		return nil, err
	}
	if err := h.load(); err != nil {
		return nil, err
	}
	h.attach = cmp.Or(h.attach, bestAttach())
	if err := errors.Join(h.readMaps(), h.takeOver(), h.adopt()); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// MakeDir makes a folder that maps and links can be pinned in.
func MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("%w: no folder can be made on a BPF file system, which this process is not given or may not write: %v", ErrUnavailable, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("%w: %s: %v", ErrUnavailable, dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w: %s is not on a BPF file system (mount -t bpf bpf /sys/fs/bpf)", ErrUnavailable, dir)
	}
	return nil
}

func (h *Handle) load() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("%w: this kernel has no BTF: %v", ErrUnavailable, err)
	}
	err := h.loadObjects()
	if errors.Is(err, ebpf.ErrMapIncompatible) { // of a build that did not keep to layout
		_ = forgetFlows(pinnedWays(h.dir)) // as far as they can be read
		if err = RemovePins(h.dir); err == nil {
			err = h.loadObjects()
		}
	}
	if errors.Is(err, ebpf.ErrNotSupported) { // the module of conntrack may not be there before someone asks for it
		askConntrack()
		err = h.loadObjects()
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		if why := lookups("/sys/kernel/btf", isAdmin()); why != "" {
			return fmt.Errorf("%w: %s: %v", ErrUnavailable, why, firstWords(err))
		}
	}
	return Unavailable(err)
}

// loadObjects loads the programs; where the kernel cannot be told of connections,
// without that.
func (h *Handle) loadObjects() (err error) {
	h.untold, err = tellingFirst(h.loadTelling)
	return err
}

// tellingFirst loads without telling where that cannot be loaded with it, and says why.
func tellingFirst(load func(tells bool) error) (untold string, err error) {
	err = load(true)
	if err == nil || errors.Is(err, ebpf.ErrMapIncompatible) {
		return "", err
	}
	return firstWords(err), load(false)
}

func (h *Handle) loadTelling(tells bool) error {
	spec, err := loadObjects()
	if err != nil {
		return err
	}
	if err := spec.Variables["tells"].Set(tells); err != nil {
		return err
	}
	return spec.LoadAndAssign(&h.objects, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: h.dir}})
}

// How says how programs are attached.
func (h *Handle) How() Attach { return h.attach }

// Untold says why conntrack is not told of the pods' own connections, as by a kernel
// before 6.0; "" where it is.
func (h *Handle) Untold() string { return h.untold }

// Close lets go of all. Programs and maps stay in force.
func (h *Handle) Close() {
	for _, d := range h.devices {
		if d.link != nil {
			_ = d.link.Close()
		}
	}
	_ = h.objects.Close()
}

// Counters reads how many packets each reason has had since the maps were made.
func (h *Handle) Counters() ([]Count, error) {
	counts := make([]Count, len(reasons))
	for i, name := range reasons {
		var each []uint64
		if err := h.objects.PlCounters.Lookup(uint32(i), &each); err != nil {
			return nil, fmt.Errorf("bpf map counters: %w", err)
		}
		counts[i].Reason = name
		for _, n := range each {
			counts[i].Packets += n
		}
	}
	return counts, nil
}

// Remove takes the fast path away, of whichever layout: the programs first, at once for
// each device, then the maps. Flows go on by the normal path. dir is Config.Dir;
// nothing there is no error.
func Remove(dir string) error {
	own := filepath.Join(dir, layout)
	err := errors.Join(forgetFlows(pinnedWays(own)), forgetOthers(own), removeFilters(), RemoveOthers(own), RemoveDir(own))
	_ = os.Remove(dir) // where nothing else is in it
	return err
}

// RemoveOthers takes away what agents of other layouts have left beside a layout's
// folder, at an upgrade or on the way back from one.
func RemoveOthers(own string) error {
	dirs, err := others(own)
	errs := []error{err}
	for _, dir := range dirs {
		errs = append(errs, RemoveDir(dir))
	}
	return errors.Join(errs...)
}

// forgetOthers has conntrack forget what the flows of programs of other layouts were, as far as
// their maps can be read: of these flows some may not take the fast path any more.
func forgetOthers(own string) error {
	dirs, err := others(own)
	errs := []error{err}
	for _, dir := range dirs {
		errs = append(errs, forgetFlows(pinnedWays(dir)))
	}
	return errors.Join(errs...)
}

// others gives the folders of other layouts.
func others(own string) (dirs []string, err error) {
	all, err := os.ReadDir(filepath.Dir(own))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	kind := withoutNumber(filepath.Base(own))
	for _, f := range all {
		if f.Name() != filepath.Base(own) && withoutNumber(f.Name()) == kind {
			dirs = append(dirs, filepath.Join(filepath.Dir(own), f.Name()))
		}
	}
	return dirs, err
}

func withoutNumber(layout string) string { return strings.TrimRight(layout, "0123456789") }

// RemoveDir removes a folder with what is pinned in it.
func RemoveDir(dir string) error { return errors.Join(RemovePins(dir), os.RemoveAll(dir)) }

// pinnedWays reads what took the fast path from pinned maps, as far as they are
// there.
func pinnedWays(dir string) ways {
	h := &Handle{pods: map[netip.Addr]objectsPod{}, peers: map[netip.Prefix]objectsPeer{}}
	for name, m := range map[string]**ebpf.Map{objectsMapPlPods: &h.objects.PlPods, objectsMapPlPeers: &h.objects.PlPeers} {
		var err error
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return ways{}
		}
		defer (*m).Close()
	}
	_ = h.readMaps()
	return waysOf(h.pods, h.peers)
}

// RemovePins unpins all in a folder. A link without pin and holder is detached
// by the kernel, soon; so it is detached before.
func RemovePins(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		if l, err := link.LoadPinnedLink(path, nil); err == nil {
			_ = l.Detach() // of a device that has gone: detached already
			_ = l.Close()
		}
		errs = append(errs, os.Remove(path))
	}
	return errors.Join(errs...)
}
