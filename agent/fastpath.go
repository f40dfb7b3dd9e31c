package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"

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
// goes wrong with it never stands in the way of the normal path, which does not need it.
type fast struct {
	part
	handle *bpf.Handle
	// What was applied last, and in which doubt.
	link     *link.State
	doubts   int
	off      map[string]fastpath.Reason
	state    fastpath.State
	left     int      // programs to be attached
	policies watching // IPsec policies
}

// open takes the fast path into use, or away.
func (f *fast) open(c FastPath, log *slog.Logger) error {
	f.what, f.name, f.log = "fast path", "fast-path", log
	return f.begin(c.Mode, c.Dir, func() (func() ([]bpf.Count, error), error) {
		h, err := bpf.Open(bpf.Config{Dir: c.Dir})
		if err != nil {
			return nil, err
		}
		f.handle = h
		log.Info(f.what, "state", "on", "attach", h.How())
		if why := h.Untold(); why != "" {
			log.Warn(f.what+": conntrack is not told of pods' own connections", "err", why)
		}
		return h.Counters, nil
	}, bpf.Remove)
}

// watch tells of IPsec policies, for which packets take the normal path; without it
// they are seen when the links are read back.
func (f *fast) watch(ctx context.Context) {
	if f.handle == nil {
		return
	}
	f.policies = watching{what: f.what + ": changes of IPsec policies", log: f.log, open: bpf.WatchIPsec}
	f.policies.reopen(ctx)
}

// doubt has the next apply look at the kernel anew.
func (f *fast) doubt() { f.link = nil }

func (f *fast) close() {
	if f.handle != nil {
		f.handle.Close()
	}
}

// apply brings the maps to what the Plan says, after its links. It is cheap when
// nothing changed. An error stays until attach, which follows an apply that succeeded,
// has succeeded too. While the own node's object is unusable all stays as it is, as the links do.
func (f *fast) apply(p *plan.Plan, l *links, off map[string]fastpath.Reason) {
	if f.handle == nil || p.OverlayInput().Check() != nil {
		return
	}
	if f.err == nil && f.link == p.Link && f.doubts == l.doubts && maps.Equal(f.off, off) {
		return
	}
	devices, err := f.handle.Devices()
	ipsec, unread := bpf.IPsec()
	if err = errors.Join(err, unread); err == nil {
		f.state = fastpath.Compile(fastpath.Input{Overlay: p.OverlayInput(), Link: *p.Link, Devices: devices, IPsec: ipsec, Off: off})
		err = f.handle.Apply(f.state)
	}
	f.link, f.doubts, f.off, f.left = p.Link, l.doubts, off, 1
	if err != nil {
		f.left = 0
		f.report(err)
	}
}

// attach attaches some of the programs that are missing, and tells whether there
// are more. When all have been tried, an error is that of those which cannot be attached, and
// again() says when they are tried next. It is not part of apply, so that no pod waits for it.
func (f *fast) attach() (more bool) {
	if f.handle == nil || f.left == 0 {
		return false
	}
	left, err := f.handle.AttachSome(attachAtOnce)
	if f.left = left; left > 0 {
		return true
	}
	f.report(err)
	return false
}

// normalPods gives the host ends of the pods that are not to take the fast path.
func (a *Agent) normalPods() map[string]fastpath.Reason {
	if a.fast.handle == nil {
		return nil
	}
	return normalPods(a.snapshot, a.pods.Allocations(), policed(a.config.Policies, a.fast.handle.Takes))
}

// policed tells of which pods a NetworkPolicy may say something. Before the policies
// are known for the first time, all stays as an agent before has left it: what takes the fast path goes
// on, and no other pod joins.
func policed(p Policies, takes func(netip.Addr) bool) func(cni.Allocation) bool {
	if p == nil {
		return func(cni.Allocation) bool { return false }
	}
	all, known := p.All()
	if !known {
		return func(al cni.Allocation) bool { return !slices.ContainsFunc(al.Addrs, takes) }
	}
	namespaces := map[string]bool{}
	for _, k := range all {
		namespaces[k.Namespace] = true
	}
	return func(al cni.Allocation) bool { return namespaces[al.Namespace] }
}

func normalPods(s *cluster.Snapshot, allocations []cni.Allocation, policed func(cni.Allocation) bool) map[string]fastpath.Reason {
	off := map[string]fastpath.Reason{}
	for _, al := range allocations {
		pod := s.Pods.Get(cluster.Key{Namespace: al.Namespace, Name: al.Pod})
		switch {
		case pod != nil && pod.NormalPath != "":
			off[al.Link] = fastpath.Reason(pod.NormalPath)
		case al.Bandwidth != nil:
			off[al.Link] = fastpath.Bandwidth
		case policed(al):
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
	// Untold is why conntrack is not told of pods' own connections; "" where it is.
	Untold string `json:"untold,omitempty"`
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
	s := FastPathStatus{On: true, Attach: string(f.handle.How()), Untold: f.handle.Untold()}
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

// now gives what the fast path takes, for an explanation; nothing where it is
// off.
func (f *fast) now(node string) map[string]*fastpath.State {
	if f.handle == nil {
		return nil
	}
	s := f.state // replaced, never changed
	return map[string]*fastpath.State{node: &s}
}
