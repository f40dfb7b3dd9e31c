package live

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/overlay"
)

// labSite is a lab.
type labSite struct {
	*lab.Client
	status *lab.Status
}

// Lab reads a lab's cluster state. The nodes' facts are read when they are needed.
func Lab(ctx context.Context, name string) (*Cluster, error) {
	client, err := lab.Dial(name)
	if err != nil {
		return nil, err
	}
	st, err := client.Status(ctx)
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	objects, _, err := file.Read(filepath.Join(client.Dir(), "cluster"))
	if err != nil {
		return nil, fmt.Errorf("lab %s: %w", name, err)
	}
	c := newCluster(name, objects.Snapshot(""), &labSite{client, st})
	c.Outside = outside(c.Snapshot)
	return c, nil
}

// outside are the addresses of the lab's outside, a host beside the nodes: in
// each segment of the nodes' it has the one that ends in 254 (fe).
func outside(s *cluster.Snapshot) []netip.Addr {
	var list []netip.Addr
	for _, k := range s.Nodes.Keys() {
		for _, a := range s.Nodes.Get(k).Addresses {
			if o := lab.Outside(a); !slices.Contains(list, o) {
				list = append(list, o)
			}
		}
	}
	return list
}

func (l *labSite) nodes() (names []string) {
	for _, n := range l.status.Nodes {
		names = append(names, n.Name)
	}
	return names
}

func (l *labSite) patience() time.Duration { return 5 * time.Second }

// traceArgs: a trace in a lab gets SIGINT.
func (l *labSite) traceArgs() []string { return nil }

func (l *labSite) about(node string) []string {
	dir := filepath.Join(l.Dir(), "nodes", node)
	return []string{"--node", node, "--manifests", filepath.Join(l.Dir(), "cluster"), "--overlay", l.status.Overlay, "--vxlan-port", strconv.Itoa(int(cmp.Or(l.status.VXLANPort, overlay.DefaultPort))),
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state")}
}

// Program is the podlane to run inside a lab; empty is the running program, which
// is right but for tests.
var Program string

// run interrupts the command at the stop.
func (l *labSite) run(ctx context.Context, target string, stop <-chan struct{}, args ...string) ([]byte, error) {
	self := Program
	if self == "" {
		var err error
		if self, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	out, err := l.Output(ctx, target, append([]string{self, "observe"}, args...)...)
	if out != "" && stop != nil {
		err = nil // it was told to end
	}
	return []byte(out), err
}

func (l *labSite) port(ctx context.Context, target string) (port uint16, err error) {
	out, err := l.run(ctx, target, nil, "port")
	if err != nil {
		return 0, err
	}
	return port, json.NewDecoder(bytes.NewReader(out)).Decode(&port)
}

func (l *labSite) facts(_ context.Context, node string) (*observe.Facts, error) {
	socket := filepath.Join(l.Dir(), "nodes", node, "run", "agent.sock")
	reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbStatus}, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if reply.Error != nil {
		return nil, reply.Error
	}
	return factsOf(reply.Result)
}

// factsOf takes the facts from what an agent says of itself.
func factsOf(status []byte) (*observe.Facts, error) {
	s := &agent.Status{}
	if err := json.Unmarshal(status, s); err != nil {
		return nil, err
	}
	if !s.Synced {
		return nil, fmt.Errorf("it waits for the cluster's first state")
	}
	f := &observe.Facts{Node: s.Node, Underlay: s.Underlay, Overlay: s.Overlay, Pods: []observe.PodLink{}, Probed: s.Probed, Sockets: s.SocketLB.Clients()}
	if s.FastPath.On {
		f.Fast = &observe.FastPath{Pods: s.FastPath.Pods, Peers: s.FastPath.Peers}
	}
	for _, p := range s.Pods {
		f.Pods = append(f.Pods, observe.PodLink{Pod: p.Pod, Link: p.Dev, MAC: p.MAC, MTU: p.MTU, Addrs: p.Addrs})
	}
	return f, nil
}
