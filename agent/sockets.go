package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/kernel/bpf/socket"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/proxy/ebpf"
)

// SocketLB are the settings of the translation of Services at the socket. The zero
// value is off.
type SocketLB struct {
	Mode   fastpath.Mode
	Dir    string // a folder of a BPF file system, this node's own
	Cgroup string // see socket.PodsCgroup
}

// sockets keeps the translation at the socket as a Table and the node's pods want
// it. The rules do without.
type sockets struct {
	part
	handle *socket.Handle
	have   *ebpf.Applied // nil: not known
	where  string        // the cgroup whose processes it meets; "": none yet
	// What was applied last, and in which doubt.
	table   *proxy.Table
	doubts  int
	own     []netip.Addr
	clients map[uint64]bool
	pods    []netip.Addr // the clients' addresses
}

// open takes the translation into use, or away.
func (s *sockets) open(c SocketLB, log *slog.Logger) error {
	s.what, s.name, s.log = "translation at the socket", "socket-lb", log
	return s.begin(c.Mode, c.Dir, func() (func() ([]bpf.Count, error), error) {
		h, err := socket.Open(socket.Config{Dir: c.Dir, Cgroup: c.Cgroup})
		if err != nil {
			return nil, err
		}
		s.handle = h
		return h.Counters, nil
	}, socket.Remove)
}

func (s *sockets) close() {
	if s.handle != nil {
		s.handle.Close()
	}
}

// apply brings the maps to a Table, and keeps the programs in force. It is cheap when
// nothing changed.
func (s *sockets) apply(t *proxy.Table, doubts int, clients map[uint64]bool, pods []netip.Addr) {
	if s.handle == nil {
		return
	}
	var err error
	if s.err != nil || s.table != t || s.doubts != doubts || !maps.Equal(s.clients, clients) {
		if err = s.write(t, doubts, clients); err == nil {
			s.table, s.doubts, s.clients, s.pods = t, doubts, clients, pods
		}
	}
	s.report(errors.Join(err, s.follow(len(clients) > 0)))
}

// write brings the maps to a Table and to who takes part.
func (s *sockets) write(t *proxy.Table, doubts int, clients map[uint64]bool) error {
	if s.have == nil {
		have, err := s.handle.Read()
		if err != nil {
			return err
		}
		s.have = ebpf.Adopt(have)
	}
	if doubts != s.doubts || s.own == nil {
		own, err := ownAddresses()
		if err != nil {
			return err
		}
		s.own = own
	}
	next, changes := ebpf.Diff(s.have, t, s.own)
	written := s.handle.Write(changes)
	if s.have = next; written != nil {
		s.have = nil // to be read
	}
	return errors.Join(written, s.handle.SetClients(clients))
}

// follow keeps the programs at the cgroup of the node's pods, whichever that is now.
// Before there is a pod there may be none.
func (s *sockets) follow(pods bool) error {
	where, err := s.handle.Attach()
	if where != s.where && where != "" {
		s.log.Info(s.what, "state", "on", "cgroup", where)
	}
	s.where = where
	if !pods {
		return nil
	}
	return err
}

// ownAddresses are the node's, but for loopback's.
func ownAddresses() ([]netip.Addr, error) {
	all, err := net.InterfaceAddrs()
	own := []netip.Addr{}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.Addr().IsLoopback() {
			own = append(own, p.Addr().Unmap())
		}
	}
	slices.SortFunc(own, netip.Addr.Compare)
	return own, err
}

// translate has the translation follow the Services where they are ours.
func (a *Agent) translate() {
	if a.sockets.handle == nil {
		return
	}
	if a.operations.off != "" {
		a.sockets.apply(&proxy.Table{}, a.links.doubts, nil, nil)
		return
	}
	clients, pods := socketClients(a.snapshot, a.pods.Allocations())
	a.sockets.apply(a.plan.Table, a.links.doubts, clients, pods)
}

// socketClients gives the network namespaces of the pods that take part, by cookie,
// and these pods' addresses. A pod whose object is not known yet may have opted
// out.
func socketClients(s *cluster.Snapshot, allocations []cni.Allocation) (map[uint64]bool, []netip.Addr) {
	clients, pods := map[uint64]bool{}, []netip.Addr{}
	for _, al := range allocations {
		pod := s.Pods.Get(cluster.Key{Namespace: al.Namespace, Name: al.Pod})
		if pod == nil || pod.RulesOnly != "" || al.NetnsCookie == 0 {
			continue
		}
		clients[al.NetnsCookie] = true
		pods = append(pods, al.Addrs...)
	}
	slices.SortFunc(pods, netip.Addr.Compare)
	return clients, pods
}

// SocketLBStatus is what the agent says of the translation at the socket.
type SocketLBStatus struct {
	On     bool   `json:"on"`
	Why    string `json:"why,omitempty"`    // it is off
	Cgroup string `json:"cgroup,omitempty"` // whose processes it meets
	Error  string `json:"error,omitempty"`  // what of it is not applied
	// Frontends are how many there are in its maps, Pods the pods that take part.
	Frontends int          `json:"frontends,omitempty"`
	Pods      []netip.Addr `json:"pods,omitempty"`
	Own       []netip.Addr `json:"own,omitempty"` // addresses that it leaves alone
	Counters  []bpf.Count  `json:"counters,omitempty"`
	// Rules names the pods that keep to the rules, each with the reason.
	Rules []string `json:"rules,omitempty"`
}

// Clients is what the translation takes, as far as it can be told from the status;
// nil where it is off.
func (s SocketLBStatus) Clients() *ebpf.Clients {
	if !s.On || s.Cgroup == "" {
		return nil
	}
	return ebpf.NewClients(s.Pods, s.Own)
}

func (s *sockets) status(snapshot *cluster.Snapshot, allocations []cni.Allocation) SocketLBStatus {
	if s.handle == nil {
		return SocketLBStatus{Why: s.why}
	}
	st := SocketLBStatus{On: true, Cgroup: s.where, Pods: s.pods, Own: s.own}
	if s.have != nil {
		st.Frontends = s.have.Len()
	}
	counts, err := s.handle.Counters()
	if err = errors.Join(s.err, err); err != nil {
		st.Error = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	st.Counters = counts
	for _, al := range allocations {
		switch pod := snapshot.Pods.Get(cluster.Key{Namespace: al.Namespace, Name: al.Pod}); {
		case pod != nil && pod.RulesOnly != "":
			st.Rules = append(st.Rules, "pod "+al.PodName()+": "+pod.RulesOnly)
		case al.NetnsCookie == 0:
			st.Rules = append(st.Rules, "pod "+al.PodName()+": older than this, or than Linux 5.14")
		}
	}
	return st
}

// now gives whom the translation takes, for an explanation.
func (s *sockets) now(node string) map[string]*ebpf.Clients {
	if s.handle == nil || s.where == "" {
		return nil
	}
	return map[string]*ebpf.Clients{node: ebpf.NewClients(s.pods, s.own)}
}

// DefaultSocketLB is the mode where none is given.
const DefaultSocketLB = fastpath.Off

// ParseSocketLB reads the flag --socket-lb; "" is DefaultSocketLB.
func ParseSocketLB(text string) (fastpath.Mode, error) {
	if text == "" {
		return DefaultSocketLB, nil
	}
	m, err := fastpath.ParseMode(text)
	if err != nil {
		return "", fmt.Errorf("--socket-lb: %w", err)
	}
	return m, nil
}
