package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/convert"
)

// node is a node of the lab: a network namespace with its agent.
type node struct {
	*cluster.Node
	dir   string
	space *space
	agent *supervisor
	port  string        // the underlay's end of its link
	stop  chan struct{} // closed when the node goes
	err   error         // why it could not be made
}

// syncNodes makes the nodes that are new and ends those that are gone, or have
// other addresses or pod CIDRs than before: their pods go with them.
func (h *holder) syncNodes() {
	wanted := map[string]*cluster.Node{}
	for _, n := range h.expanded.Nodes {
		wanted[n.Name] = convert.Node(n)
	}
	for name, n := range h.nodes {
		if w := wanted[name]; w == nil || !sameNode(w, n.Node) {
			h.dropNode(n)
			delete(h.nodes, name)
		}
	}
	for name, w := range wanted {
		if old := h.nodes[name]; old != nil {
			old.Node = w
			continue
		}
		n := &node{Node: w, dir: filepath.Join(h.dir, "nodes", name), stop: make(chan struct{})}
		if n.err = h.makeNode(n); n.err != nil {
			h.log.Error("make a node", "node", name, "err", n.err)
		}
		h.nodes[name] = n
	}
}

func sameNode(a, b *cluster.Node) bool {
	return fmt.Sprint(a.Addresses, a.PodCIDRs) == fmt.Sprint(b.Addresses, b.PodCIDRs)
}

func (h *holder) makeNode(n *node) error {
	if err := os.MkdirAll(filepath.Join(n.dir, "state"), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "run"), 0o700); err != nil {
		return err
	}
	for _, a := range n.Addresses {
		if _, gateway := segment(a); a == gateway {
			return fmt.Errorf("status.addresses: %s is the lab's outside", a)
		}
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
	n.port = h.portName(n)
	if err := h.underlay.join(n.space, n.port, n.Addresses); err != nil {
		return err
	}
	for _, cidr := range n.PodCIDRs {
		if via := n.Address(cidr.Addr().Is6()); via.IsValid() {
			if err := h.underlay.route(cidr, via); err != nil {
				return fmt.Errorf("route of the outside to %s: %w", cidr, err)
			}
		}
	}
	n.agent = newSupervisor(func() (*process, error) { return h.startAgent(n) }, h.poke)
	n.agent.log = n.agentLog()
	n.agent.start()
	go n.agent.run(n.stop)
	return nil
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
			"--run-dir", filepath.Join(n.dir, "run"), "--state-dir", filepath.Join(n.dir, "state"), "--overlay", h.opts.Overlay)
		cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = log, log, "/", h.environment()
		return cmd, nil
	})
}

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

// ready says that the agent runs and has opened its socket.
func (n *node) ready() bool {
	if n.err != nil || n.agent.status().State != "running" {
		return false
	}
	info, err := os.Stat(n.agentSocket())
	return err == nil && info.Mode()&os.ModeSocket != 0
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
	_ = os.RemoveAll(n.dir)
}

func texts[T fmt.Stringer](of []T) []string {
	out := make([]string, 0, len(of))
	for _, a := range of {
		out = append(out, a.String())
	}
	return out
}
