package lab

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/overlay/fastpath"
)

// cgroupOf is the cgroup of a node's pods, by which its agent tells them from those
// of other nodes and from the machine's own processes. node "" is the parent of
// all of a lab. Where the machine has no cgroup2 it is "".
func cgroupOf(dir, node string) string {
	for _, root := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			name := fnv.New64a()
			_, _ = name.Write([]byte(dir))
			return filepath.Join(root, fmt.Sprintf("podlane-lab-%x", name.Sum64()), node)
		}
	}
	return ""
}

// makeCgroup makes it where the node's agent has a use for it; without cgroup2 and
// root it gives nil, and the agent does without.
func (h *holder) makeCgroup(node string) (*os.File, error) {
	dir := cgroupOf(h.dir, node)
	if dir == "" || h.opts.SocketLB == string(fastpath.Off) {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		if h.opts.SocketLB == string(fastpath.Auto) {
			return nil, nil
		}
		return nil, err
	}
	return os.Open(dir)
}

// removeCgroups ends what is in a lab's cgroups and removes them. Processes leave a
// cgroup a moment after their end.
func removeCgroups(dir string) {
	top := cgroupOf(dir, "")
	if top == "" {
		return
	}
	if _, err := os.Stat(top); err != nil {
		return
	}
	_ = os.WriteFile(filepath.Join(top, "cgroup.kill"), []byte("1"), 0) // Linux 5.14
	for range 100 {
		nodes, _ := filepath.Glob(filepath.Join(top, "*", "cgroup.procs"))
		for _, n := range nodes {
			_ = unix.Rmdir(filepath.Dir(n))
		}
		if err := unix.Rmdir(top); err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
