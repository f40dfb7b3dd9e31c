package machines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// podsCgroup is where a node sees the cgroup2 that its pods are in, and no other node's:
// all nodes share the machine's /sys/fs/cgroup.
const podsCgroup = "/run/pods-cgroup"

// switched is what turns deploy/podlane.yaml into a manifest with the fast path and the
// translation at the socket on, as docs/fast-path.md says.
var switched = []struct{ line, with string }{
	{"        - --probe-bind-address=:9471\n", "        - --fast-path=on\n        - --socket-lb=on\n        - --cgroup=/host/sys/fs/cgroup\n"},
	{"        - {name: proc-sys-net, mountPath: /host/proc/sys/net}\n", "        - {name: cgroup, mountPath: /host/sys/fs/cgroup, readOnly: true}\n"},
	{"      - {name: proc-sys-net, hostPath: {path: /proc/sys/net, type: Directory}}\n", "      - {name: cgroup, hostPath: {path: " + podsCgroup + ", type: Directory}}\n"},
	{"          capabilities: {drop: [ALL], add: [NET_ADMIN", ", BPF, PERFMON"},
}

// fastPath has the manifest switch all on, and the nodes have what that takes.
func (c *Cluster) fastPath(ctx context.Context) error {
	text, err := os.ReadFile(c.Path(Manifest))
	if err != nil {
		return err
	}
	manifest := string(text)
	for _, s := range switched {
		if n := strings.Count(manifest, s.line); n != 1 {
			return fmt.Errorf("%s has %d times %q, want once", Manifest, n, s.line)
		}
		manifest = strings.Replace(manifest, s.line, s.line+s.with, 1)
	}
	for _, n := range c.Nodes {
		if err := n.fastPath(ctx); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return os.WriteFile(c.Path(Manifest), []byte(manifest), 0o600)
}

// fastPath mounts what the node's agent looks for. With cgroup v1, where runc leaves
// pods in whichever cgroup2 they are started in, the runtime starts them in the node's.
func (n *Node) fastPath(ctx context.Context) error {
	cgroup := filepath.Join(os.Getenv(group), n.Name)
	if err := makeCgroups(cgroup); err != nil {
		return err
	}
	dir := filepath.Join(cgroups, cgroup)
	var fs unix.Statfs_t
	if err := unix.Statfs(cgroups, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		dir = filepath.Join(cgroups, "unified", cgroup)
		n.procs = filepath.Join(dir, "cgroup.procs")
	}
	for _, args := range [][]string{{"mkdir", podsCgroup}, {"mount", "--bind", dir, podsCgroup}, {"mount", "-t", "bpf", "bpf", "/sys/fs/bpf"}} {
		if _, err := n.Run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}
