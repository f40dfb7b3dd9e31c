package cni

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/kernel/link"
)

// recordVersion is the version of a record's document. A newer one may add
// fields; what this program knows of it keeps its meaning, since the folder's
// name changes when the meaning does.
const recordVersion = 1

// maxContainerID keeps file names below 255 bytes. (containerd's are 64.)
const maxContainerID = 180

// Key identifies an attachment: the CNI specification's CNI_CONTAINERID and
// CNI_IFNAME.
type Key struct{ ContainerID, IfName string }

// String gives both, as the record's file is named.
func (k Key) String() string { return k.ContainerID + "-" + escape(k.IfName) }

// escape makes an interface's name safe in a file's name, and free of the '-'
// that ends the container's.
func escape(name string) string {
	return escapes.Replace(name)
}

var escapes = strings.NewReplacer("%", "%25", "-", "%2d", "/", "%2f")

// Allocation is one pod interface: what it was given and where it is.
type Allocation struct {
	Network     string `json:"network"` // the network configuration's name
	ContainerID string `json:"containerId"`
	IfName      string `json:"ifName"` // the link in the pod, mostly eth0
	Netns       string `json:"netns"`  // the path that the runtime gave
	// NetnsCookie is that of the network namespace; 0 where the kernel has none.
	NetnsCookie uint64 `json:"netnsCookie,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Pod         string `json:"pod,omitempty"`
	UID         string `json:"uid,omitempty"`
	BootID      string `json:"bootId"`
	// Addrs are the pod's addresses, at most one a family, and Gateways the ones
	// it sends to, in the same order.
	Addrs    []netip.Addr `json:"addrs"`
	Gateways []netip.Addr `json:"gateways"`
	MTU      int          `json:"mtu"`
	Link     string       `json:"link"` // the host's end: "pl" and 13 characters
	MAC      link.MAC     `json:"-"`    // of the pod's end
	HostMAC  link.MAC     `json:"-"`    // of the host's end
	Created  time.Time    `json:"created"`
	// Bandwidth limits the pod; nil is no limit.
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
	// Ports are the node's ports that lead to the pod.
	Ports []PortMapping `json:"ports,omitempty"`
}

// Key gives the allocation's key.
func (a Allocation) Key() Key { return Key{a.ContainerID, a.IfName} }

// PodName is "namespace/pod", or the container's id where the runtime told no
// pod.
func (a Allocation) PodName() string {
	if a.Pod == "" {
		return a.ContainerID
	}
	return a.Namespace + "/" + a.Pod
}

// document is an Allocation on disk.
type document struct {
	Version int `json:"version"`
	Allocation
	MAC     string `json:"mac"`
	HostMAC string `json:"hostMac"`
}

// Record is the folder of allocations (STATE/allocations/v1), one file each, and
// the same in memory. It is the truth about which pod has which address; the
// kernel is made to follow it. Not for concurrent use.
type Record struct {
	dir    string
	pods   map[Key]Allocation
	sorted []Allocation // the same; nil: to be sorted anew
	spares spares
}

// OpenRecord reads the folder, which it makes where it is missing. A file that
// is not a whole record is renamed to NAME.bad, so that somebody can look at it, and
// is named in one of the problems; it stops nothing. An empty one is what a crash of the
// machine leaves of a file that was just written: it goes. The error is the folder's own.
func OpenRecord(dir string) (record *Record, problems []error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("allocation record: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("allocation record: %w", err)
	}
	record = &Record{dir: dir, pods: map[Key]Allocation{}, spares: spares{dir: dir}}
	for _, entry := range entries {
		if err := record.load(entry.Name()); err != nil {
			problems = append(problems, fmt.Errorf("allocation record %s: %w", entry.Name(), err))
		}
	}
	record.Prepare()
	return record, problems, nil
}

// Prepare makes ready what the next Puts need, while nobody waits for them.
func (r *Record) Prepare() { r.spares.fill() }

// load takes one file of the folder into memory, or out of the way.
func (r *Record) load(name string) error {
	path := filepath.Join(r.dir, name)
	if strings.HasPrefix(name, temporary) {
		return r.spares.find(name) // never an allocation
	}
	if !strings.HasSuffix(name, ".json") || name == cursorFile {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.Size() == 0 {
		return os.Remove(path)
	}
	a, err := readAllocation(path)
	if err == nil && fileName(a.Key()) != name {
		err = fmt.Errorf("is the record of %s", a.Key())
	}
	if err != nil {
		return errors.Join(err, os.Rename(path, path+".bad"))
	}
	r.pods[a.Key()] = a
	return nil
}

func readAllocation(path string) (Allocation, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Allocation{}, err
	}
	var d document
	if err := json.Unmarshal(text, &d); err != nil {
		return Allocation{}, err
	}
	a := d.Allocation
	if err := errors.Join(parseMAC(d.MAC, &a.MAC), parseMAC(d.HostMAC, &a.HostMAC)); err != nil {
		return Allocation{}, err
	}
	return a, a.valid(d.Version)
}

// valid says what a record lacks to be worked with.
func (a Allocation) valid(version int) error {
	switch {
	case version < recordVersion:
		return fmt.Errorf("version %d", version)
	case a.ContainerID == "" || a.IfName == "":
		return errors.New("no containerId or no ifName")
	case len(a.Addrs) == 0 || len(a.Addrs) != len(a.Gateways):
		return fmt.Errorf("%d addrs and %d gateways", len(a.Addrs), len(a.Gateways))
	case !strings.HasPrefix(a.Link, link.Prefix) || len(a.Link) > 15:
		return fmt.Errorf("link %q is not ours", a.Link)
	}
	return nil
}

// All gives the allocations, sorted by their keys.
func (r *Record) All() []Allocation {
	if r.sorted == nil {
		r.sorted = slices.SortedFunc(maps.Values(r.pods), func(a, b Allocation) int {
			return cmp.Or(cmp.Compare(a.ContainerID, b.ContainerID), cmp.Compare(a.IfName, b.IfName))
		})
	}
	return slices.Clone(r.sorted)
}

// Get gives the allocation of a key.
func (r *Record) Get(k Key) (Allocation, bool) {
	a, ok := r.pods[k]
	return a, ok
}

// Put writes allocations so that they survive the agent, and gives one error for each
// (nil where it is written). They need not survive the machine: what they are of does
// not, and a record of an earlier boot is collected. So nothing is synced, which takes
// up to seconds on a disk that containers' images are being written to, for each pod.
func (r *Record) Put(as ...Allocation) []error {
	errs := make([]error, len(as))
	for i, a := range as {
		if err := r.write(a); err != nil {
			errs[i] = fmt.Errorf("allocation record of %s: %w", a.PodName(), err)
			continue
		}
		r.pods[a.Key()], r.sorted = a, nil
	}
	return errs
}

// write is one record's file.
func (r *Record) write(a Allocation) error {
	text, err := json.MarshalIndent(document{recordVersion, a, a.MAC.String(), a.HostMAC.String()}, "", "  ")
	if err != nil {
		return err
	}
	f, err := r.spares.take()
	if err != nil {
		return err
	}
	return finish(f, filepath.Join(r.dir, fileName(a.Key())), append(text, '\n'), 0o600, false)
}

// Remove removes an allocation; one that is not there is no error.
func (r *Record) Remove(k Key) error {
	if err := os.Remove(filepath.Join(r.dir, fileName(k))); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("allocation record of %s: %w", k, err)
	}
	delete(r.pods, k)
	r.sorted = nil
	return nil
}

func fileName(k Key) string { return k.String() + ".json" }
