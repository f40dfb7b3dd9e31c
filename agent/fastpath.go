package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/plan"
)

// FastPath are the settings of the fast path. The zero value is off.
type FastPath struct {
	Mode fastpath.Mode
	Dir  string // a folder of a BPF file system, this node's own
}

// attachAtOnce bounds how many programs are attached before the loop looks at
// what else there is to do: each may take 15 ms.
const attachAtOnce = 4

// fast keeps the node's fast path as a Plan and the cluster's state want it. What
// goes wrong with it is said and tried again, and never stands in the way of the
// normal path, which does not need it.
type fast struct {
	config FastPath
	log    *slog.Logger
	handle *bpf.Handle
	why    string // it is off; "" where it is on
	// What was applied last, and in which doubt.
	link   *link.State
	doubts int
	off    map[string]fastpath.Reason
	state  fastpath.State
	left   int // programs to be attached
	err    error
	failed int // times in a row
	// counters are for scrapes, which other goroutines make.
	counters atomic.Pointer[bpf.Handle]
}

// open takes the fast path into use, or away.
func (f *fast) open(c FastPath, log *slog.Logger) error {
	f.config, f.log = c, log
	if c.Mode == fastpath.Off || c.Mode == "" {
		f.why = "off by --fast-path"
		if c.Dir == "" {
			return nil
		}
		return bpf.Remove(c.Dir)
	}
	var err error
	f.handle, err = bpf.Open(bpf.Config{Dir: c.Dir})
	if err == nil {
		f.counters.Store(f.handle)
		log.Info("fast path", "state", "on", "attach", f.handle.How())
		return nil
	}
	f.why = err.Error()
	if c.Mode == fastpath.On {
		return err
	}
	log.Info("fast path", "state", "off", "err", err)
	return bpf.Remove(c.Dir) // what an agent with more rights left must not stay
}

func (f *fast) close() {
	if f.handle != nil {
		f.handle.Close()
	}
}

// apply brings the maps to what the Plan says, after its links. It is cheap when
// nothing changed. An error stays until attach, which follows an apply that succeeded,
// has succeeded too.
func (f *fast) apply(p *plan.Plan, l *links, off map[string]fastpath.Reason) {
	if f.handle == nil {
		return
	}
	if f.err == nil && f.link == p.Link && f.doubts == l.doubts && maps.Equal(f.off, off) {
		return
	}
	devices, err := bpf.Devices()
	if err == nil {
		f.state = fastpath.Compile(fastpath.Input{Overlay: p.OverlayInput(), Link: *p.Link, Devices: devices, Off: off})
		err = f.handle.Apply(f.state)
	}
	f.link, f.doubts, f.off, f.left = p.Link, l.doubts, off, 1
	if err != nil {
		f.left = 0
		f.report(err)
	}
}

// attach attaches some of the programs that are missing, and tells whether there
// are more. It is not part of apply, so that no pod waits for it.
func (f *fast) attach() (more bool) {
	if f.handle == nil || f.left == 0 {
		return false
	}
	left, err := f.handle.AttachSome(attachAtOnce)
	f.left = left
	f.report(err)
	return left > 0
}

func (f *fast) report(err error) {
	if err != nil && (f.err == nil || f.err.Error() != err.Error()) {
		f.log.Warn("fast path", "err", err)
	}
	f.err = err
	if f.failed++; err == nil {
		f.failed = 0
	}
}

// normalPods gives the host ends of the pods that are not to take the fast path.
func (a *Agent) normalPods() map[string]fastpath.Reason {
	if a.fast.handle == nil {
		return nil
	}
	policed := map[string]bool{}
	if a.config.Policies != nil {
		for _, k := range a.config.Policies.All() {
			policed[k.Namespace] = true
		}
	}
	return normalPods(a.snapshot, a.pods.Allocations(), policed)
}

// normalPods takes the namespaces that have NetworkPolicies, policed.
func normalPods(s *cluster.Snapshot, allocations []cni.Allocation, policed map[string]bool) map[string]fastpath.Reason {
	off := map[string]fastpath.Reason{}
	for _, al := range allocations {
		pod := s.Pods.Get(cluster.Key{Namespace: al.Namespace, Name: al.Pod})
		switch {
		case pod != nil && pod.NormalPath != "":
			off[al.Link] = fastpath.Reason(pod.NormalPath)
		case al.Bandwidth != nil:
			off[al.Link] = fastpath.Bandwidth
		case policed[al.Namespace]:
			off[al.Link] = fastpath.Policy
		}
	}
	return off
}

// FastPathStatus is what the agent says of its fast path.
type FastPathStatus struct {
	On     bool   `json:"on"`
	Attach string `json:"attach,omitempty"` // tcx, clsact
	Why    string `json:"why,omitempty"`    // it is off
	Error  string `json:"error,omitempty"`  // what of it is not applied
	// Normal names the pods and links that keep to the normal path, each with the
	// reason.
	Normal   []string    `json:"normal,omitempty"`
	Counters []bpf.Count `json:"counters,omitempty"`
	// Pods and Peers are the pods of the node, and the networks of other nodes' pods,
	// between which packets take it.
	Pods  []netip.Addr   `json:"pods,omitempty"`
	Peers []netip.Prefix `json:"peers,omitempty"`
}

func (f *fast) status(allocations []cni.Allocation) FastPathStatus {
	if f.handle == nil {
		return FastPathStatus{Why: f.why}
	}
	s := FastPathStatus{On: true, Attach: string(f.handle.How())}
	names := map[string]string{}
	for _, al := range allocations {
		names[al.Link] = "pod " + al.PodName()
	}
	for _, dev := range slices.Sorted(maps.Keys(f.state.Normal)) {
		name := names[dev]
		if name == "" {
			name = dev
		}
		s.Normal = append(s.Normal, fmt.Sprintf("%s: %s", name, f.state.Normal[dev]))
	}
	for a, p := range f.state.Pods {
		if p.Normal == "" {
			s.Pods = append(s.Pods, a)
		}
	}
	slices.SortFunc(s.Pods, netip.Addr.Compare)
	s.Peers = slices.SortedFunc(maps.Keys(f.state.Peers), netip.Prefix.Compare)
	err := f.err
	if counts, e := f.handle.Counters(); e == nil {
		s.Counters = counts
	} else {
		err = errors.Join(err, e)
	}
	if err != nil {
		s.Error = err.Error()
	}
	return s
}

// counts reads the counters for a scrape, from any goroutine.
func (f *fast) counts() (map[string]uint64, error) {
	h := f.counters.Load()
	if h == nil {
		return nil, nil
	}
	list, err := h.Counters()
	out := make(map[string]uint64, len(list))
	for _, c := range list {
		out[c.Reason] = c.Packets
	}
	return out, err
}

// now gives what the fast path takes, for an explanation; nothing where it is
// off.
func (f *fast) now(node string) map[string]*fastpath.State {
	if f.handle == nil {
		return nil
	}
	s := f.state // replaced, never changed
	return map[string]*fastpath.State{node: &s}
}
