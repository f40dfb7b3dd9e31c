package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/explain/observe"
)

// kubeSite is a Kubernetes: what is on a node is asked in its agent's pod, and a
// probe from a pod runs beside it. All of it with the user's own rights.
type kubeSite struct {
	user   *kube.User
	nodeOf func(pod cluster.Key) string
	agents map[string]kube.Place
	all    []string
}

// program is podlane in its image.
const program = "/podlane"

// Kube reads a cluster through its API server. Kubeconfig is a file, or with ""
// what kubectl would take.
func Kube(ctx context.Context, kubeconfig string) (*Cluster, error) {
	user, err := kube.NewUser(kubeconfig)
	if err != nil {
		return nil, err
	}
	s, err := user.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	agents, err := user.Agents(ctx)
	if err != nil {
		return nil, err
	}
	at := &kubeSite{user: user, agents: agents, nodeOf: func(pod cluster.Key) string {
		if p := s.Pods.Get(pod); p != nil {
			return p.Node
		}
		return ""
	}}
	for _, k := range s.Nodes.Keys() {
		at.all = append(at.all, k.Name)
	}
	c := newCluster(user.Name, s, at)
	c.Outside = sources(s)
	return c, nil
}

// sources are the addresses that this machine sends from to the cluster's nodes:
// "outside" is this machine.
func sources(s *cluster.Snapshot) []netip.Addr {
	found := map[bool]netip.Addr{}
	for _, n := range s.Nodes.All() {
		for _, a := range n.Addresses {
			if found[a.Is6()].IsValid() {
				continue
			}
			// A connected UDP socket sends nothing.
			conn, err := net.Dial("udp", netip.AddrPortFrom(a, 9).String())
			if err != nil {
				continue
			}
			found[a.Is6()] = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
			_ = conn.Close()
		}
	}
	return slices.SortedFunc(maps.Values(found), netip.Addr.Compare)
}

func (k *kubeSite) nodes() []string { return k.all }

// patience is for an ephemeral container, which a busy kubelet takes its time to
// start.
func (k *kubeSite) patience() time.Duration { return 30 * time.Second }

// about: the node's agent knows.
func (k *kubeSite) about(string) []string { return []string{"--agent"} }

// traceArgs: what runs through the API server gets no signal.
func (k *kubeSite) traceArgs() []string { return []string{"--until-eof"} }

func (k *kubeSite) agent(node string) (kube.Place, error) {
	at, ok := k.agents[node]
	if !ok {
		return at, errors.New("no pod of the agent runs on it (pods labelled app.kubernetes.io/name=podlane,app.kubernetes.io/component=agent)")
	}
	return at, nil
}

func (k *kubeSite) run(ctx context.Context, target string, stop <-chan struct{}, args ...string) ([]byte, error) {
	argv := append([]string{program, "observe"}, args...)
	node, is := strings.CutPrefix(target, "node/")
	switch {
	case is:
		at, err := k.agent(node)
		if err != nil {
			return nil, err
		}
		return k.user.Exec(ctx, at, argv, until(ctx, stop))
	case target == "outside":
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		return exec.CommandContext(ctx, self, append([]string{"observe"}, args...)...).Output()
	}
	return k.beside(ctx, target, argv)
}

// until is a standard input that ends at the stop, nil without one.
func until(ctx context.Context, stop <-chan struct{}) io.Reader {
	if stop == nil {
		return nil
	}
	r, w := io.Pipe()
	go func() {
		select {
		case <-stop:
		case <-ctx.Done():
		}
		_ = w.Close()
	}()
	return r
}

// beside runs a command in the network namespace of a pod, from the agent's image,
// which its node has.
func (k *kubeSite) beside(ctx context.Context, pod string, argv []string) ([]byte, error) {
	ns, name, _ := strings.Cut(pod, "/")
	at := cluster.Key{Namespace: ns, Name: name}
	a, err := k.agent(k.nodeOf(at))
	if err != nil {
		return nil, fmt.Errorf("the pod's node %s: %w", k.nodeOf(at), err)
	}
	argv = append(argv, "--result", "/dev/termination-log")
	return k.user.RunBeside(ctx, at, fmt.Sprintf("podlane-probe-%08x", rand.Uint32()), a.Image, argv)
}

// port: no command can find a free port in a pod before the probe runs there. Below
// the ports that kernels give out on their own (from 32768), one is rarely taken;
// the probe says so where it is.
func (k *kubeSite) port(context.Context, string) (uint16, error) {
	return uint16(20000 + rand.IntN(12000)), nil
}

func (k *kubeSite) facts(ctx context.Context, node string) (*observe.Facts, error) {
	at, err := k.agent(node)
	if err != nil {
		return nil, err
	}
	// The exit status is 1 where the agent has something that is not applied.
	out, err := k.user.Exec(ctx, at, []string{program, "status", "--json"}, nil)
	if f, parsed := factsOf(out); parsed == nil || len(out) > 0 {
		return f, parsed
	}
	return nil, err
}
