package socket

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/bpf"
)

// kubepods are the names that kubelets give to the cgroup of all pods, by their
// drivers and by distributions that nest the kubelet.
var kubepods = []string{"kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"}

// PodsCgroup gives the cgroup of a node's pods. dir is that cgroup itself, or the
// root of a cgroup2 file system in which the kubelet's is looked for; a root is never
// given, since what is attached to it meets every process of the machine. Where the
// machine has cgroup v1 too, the file system may be in dir/unified.
func PodsCgroup(dir string) (string, error) {
	base, err := cgroup2(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(base, "cgroup.events")); err == nil { // a root has none
		return base, nil
	}
	for _, name := range kubepods {
		if _, err := os.Stat(filepath.Join(base, name)); err == nil {
			return filepath.Join(base, name), nil
		}
	}
	return "", fmt.Errorf("no cgroup of pods in %s (kubepods.slice, kubepods): cgroup v1, or no pod yet", base)
}

func cgroup2(dir string) (string, error) {
	for _, d := range []string{filepath.Join(dir, "unified"), dir} {
		var fs unix.Statfs_t
		if unix.Statfs(d, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return d, nil
		}
	}
	return "", fmt.Errorf("%w: %s is not a cgroup2 file system, nor is %s", bpf.ErrUnavailable, dir, filepath.Join(dir, "unified"))
}
