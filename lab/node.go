package lab

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
	"github.com/podlane/podlane/cni/shim"
)

// node is a node of the lab: a network namespace with its agent.
type node struct {
	*cluster.Node                              // as it was made
	addrs         atomic.Pointer[[]netip.Addr] // since it was renumbered; nil before
	dir           string
	space         *space
	pods          *os.File // the cgroup of its pods; nil: none of their own
	agent         *supervisor
	port          string        // the underlay's end of its link
	stop          chan struct{} // closed when the node goes
	asks          chan struct{} // has watchAgent ask at once
	err           error         // why it could not be made

	seen atomic.Pointer[agentSeen]
}

// agentSeen is what an agent said of itself last.
type agentSeen struct {
	pid     int // of the agent that said it
	synced  bool
	applied string // the version of the cluster folder that its kernel has
	err     string
}

// wantedNodes are the nodes that the objects want.
func (h *holder) wantedNodes() map[string]*cluster.Node {
	wanted := map[string]*cluster.Node{}
	for _, n := range h.expanded.Nodes {
		wanted[n.Name] = convert.Node(n)
	}
	return wanted
}

// renumberNodes gives nodes whose addresses have changed the new ones, as a DHCP
// server would: the old ones go, the pods stay. The Node object follows, as it
// does on a real cluster, where the kubelet writes it.
func (h *holder) renumberNodes() {
	for name, w := range h.wantedNodes() {
		n := h.nodes[name]
		if n == nil || n.err != nil || slices.Equal(w.Addresses, n.addresses()) || !slices.Equal(w.PodCIDRs, n.PodCIDRs) {
			continue
		}
		if n.err = h.renumber(n, w.Addresses); n.err != nil {
			h.log.Error("renumber a node", "node", name, "err", n.err)
		}
	}
}

func (h *holder) renumber(n *node, addrs []netip.Addr) error {
	if err := usable(addrs); err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.underlay.open(a); err != nil {
			return err
		}
	}
	if err := n.space.run(func() error { return readdressNode(addrs) }); err != nil {
		return err
	}
	n.addrs.Store(&addrs)
	return h.routeOutside(n)
}

// syncNodes makes the nodes that are new and ends those that are gone, or have
// other pod CIDRs than before: their pods go with them.
func (h *holder) syncNodes() {
	wanted := h.wantedNodes()
	for name, n := range h.nodes {
		if w := wanted[name]; w == nil || !slices.Equal(w.PodCIDRs, n.PodCIDRs) || !slices.Equal(w.Addresses, n.addresses()) {
			h.dropNode(n)
			delete(h.nodes, name)
		}
	}
	for name, w := range wanted {
		if h.nodes[name] != nil {
			continue
		}
		n := &node{Node: w, dir: filepath.Join(h.dir, "nodes", name), stop: make(chan struct{}), asks: make(chan struct{}, 1)}
		if n.err = h.makeNode(n); n.err != nil {
			h.log.Error("make a node", "node", name, "err", n.err)
		} else {
			h.runAgent(n)
		}
		h.nodes[name] = n
	}
}

// addresses are the ones that the node has now.
func (n *node) addresses() []netip.Addr {
	if addrs := n.addrs.Load(); addrs != nil {
		return *addrs
	}
	return n.Addresses
}

// usable refuses the addresses that the outside has.
func usable(addrs []netip.Addr) error {
	for _, a := range addrs {
		if _, gateway := segment(a); a == gateway {
			return fmt.Errorf("status.addresses: %s is the lab's outside", a)
		}
	}
	return nil
}

func (h *holder) makeNode(n *node) error {
	if err := os.MkdirAll(filepath.Join(n.dir, "state"), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "run"), 0o700); err != nil {
		return err
	}
	if err := usable(n.Addresses); err != nil {
		return err
	}
	var err error
	n.space, err = newSpace(filepath.Join(h.dir, "netns", "node-"+n.Name), unix.CLONE_NEWNET|unix.CLONE_NEWUTS, func() error {
		if err := unix.Sethostname([]byte(n.Name)); err != nil {
			return err
		}
		return loopbackUp()
	})
	if err != nil {
		return err
	}
	if n.pods, err = h.makeCgroup(n.Name); err != nil {
		return err
	}
	n.port = h.portName(n)
	if err := h.underlay.join(n.space, n.port, n.Addresses); err != nil {
		return err
	}
	return h.routeOutside(n)
}

// routeOutside has the outside send to the node's pods by way of the node.
func (h *holder) routeOutside(n *node) error {
	now := cluster.Node{Addresses: n.addresses()}
	for _, cidr := range n.PodCIDRs {
		if via := now.Address(cidr.Addr().Is6()); via.IsValid() {
			if err := h.underlay.route(cidr, via); err != nil {
				return fmt.Errorf("route of the outside to %s: %w", cidr, err)
			}
		}
	}
	return nil
}

// runAgent has the node's agent run until the node goes.
func (h *holder) runAgent(n *node) {
	n.agent = newSupervisor(func() (*process, error) { return h.startAgent(n) }, func() { n.ask(); h.poke() })
	n.agent.log = n.agentLog()
	n.agent.start()
	go n.agent.run(n.stop)
	go n.watchAgent(h.poke)
}

// portName names the underlay's end of a node's link: the node's name, where it
// is short enough for a link's name (15 bytes) and free.
func (h *holder) portName(n *node) string {
	if len(n.Name) <= 15 && n.Name != bridgeName && n.Name != "lo" {
		return n.Name
	}
	h.ports++
	return fmt.Sprintf("port~%d", h.ports)
}

func (h *holder) startAgent(n *node) (*process, error) {
	log, err := os.OpenFile(n.agentLog(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	_ = os.Remove(n.agentSocket()) // a killed agent's: ready looks for the new one
	return h.procs.start(n.space, func() (*exec.Cmd, error) {
		cmd := exec.Command(h.program(), "agent", "--node", n.Name, "--manifests", filepath.Join(h.dir, "cluster"),
			"--run-dir", filepath.Join(n.dir, "run"), "--state-dir", filepath.Join(n.dir, "state"), "--overlay", h.opts.Overlay, "--vxlan-port", strconv.Itoa(int(h.opts.VXLANPort)), "--proxy-backend", h.opts.ProxyBackend,
			"--fast-path", h.opts.FastPath, "--bpf-dir", h.bpfDir(n),
			"--socket-lb", h.opts.SocketLB, "--cgroup", cgroupOf(h.dir, n.Name))
		cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = log, log, "/", h.environment()
		return cmd, nil
	})
}

// bpfDir is the node's own folder of the lab's BPF file system.
func (h *holder) bpfDir(n *node) string { return filepath.Join(h.dir, "bpf", n.Name) }

// program is where the holder keeps its own executable.
func (h *holder) program() string { return filepath.Join(h.dir, "bin", "podlane") }

// environment is what processes of the lab start with: nothing of the machine's
// but its PATH, with the lab's podlane first.
func (h *holder) environment(more ...string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return append([]string{"PATH=" + filepath.Join(h.dir, "bin") + ":" + path, "HOME=/", "LANG=C.UTF-8", "PODLANE_LAB=" + h.opts.Name}, more...)
}

func (n *node) agentLog() string { return filepath.Join(n.dir, "agent.log") }

// agentSocket is where the CNI plugin finds the node's agent.
func (n *node) agentSocket() string { return filepath.Join(n.dir, "run", "agent.sock") }

// ready says that the agent runs and has brought the node's kernel to what the
// cluster wants.
func (n *node) ready() bool {
	if n.err != nil {
		return false
	}
	seen, st := n.seen.Load(), n.agent.status()
	return st.State == "running" && seen != nil && seen.pid == st.PID && seen.synced && seen.err == ""
}

// has says whether the node's kernel has that version of the cluster folder.
func (n *node) has(version string) bool {
	seen := n.seen.Load()
	return n.err != nil || seen != nil && seen.applied == version
}

// watchAgent asks the agent how it is until the node goes.
func (n *node) watchAgent(changed func()) {
	for every := 20 * time.Millisecond; ; {
		was := n.ready()
		n.seen.Store(n.askAgent())
		every = min(2*every, 200*time.Millisecond)
		if n.ready() != was {
			every = 20 * time.Millisecond
			changed()
		}
		select {
		case <-time.After(every):
		case <-n.asks:
			every = 10 * time.Millisecond
		case <-n.stop:
			return
		}
	}
}

// ask has watchAgent ask soon.
func (n *node) ask() {
	select {
	case n.asks <- struct{}{}:
	default:
	}
}

// askAgent asks on the agent's socket, as `podlane status` does.
func (n *node) askAgent() *agentSeen {
	seen := &agentSeen{pid: n.agent.status().PID}
	reply, err := shim.Ask(n.agentSocket(), shim.Request{Verb: "status"}, 2*time.Second)
	if err != nil || reply.Error != nil {
		return seen
	}
	var st struct {
		Synced  bool
		Applied string
		Error   string
	}
	if json.Unmarshal(reply.Result, &st) == nil {
		seen.synced, seen.applied, seen.err = st.Synced, st.Applied, st.Error
	}
	return seen
}

// dropNode ends a node. Its pods are ended by syncPods, which finds it gone.
func (h *holder) dropNode(n *node) {
	close(n.stop)
	if n.agent != nil {
		n.agent.stop(true)
		<-n.agent.ended
	}
	if n.space == nil {
		return
	}
	h.underlay.leave(n.port)
	n.space.close()
	if n.pods != nil {
		_ = n.pods.Close()
	}
	_ = os.RemoveAll(n.dir)
}

func texts[T fmt.Stringer](of []T) []string {
	out := make([]string, 0, len(of))
	for _, a := range of {
		out = append(out, a.String())
	}
	return out
}
