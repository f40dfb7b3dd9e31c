package socket

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/bpf"
)

// kubepods are the names that kubelets give to the cgroup of all pods, by their
// drivers and by distributions that nest the kubelet.
var kubepods = []string{"kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"}

// PodsCgroup gives the cgroup of a node's pods. dir is that cgroup itself, or the
// root of a cgroup2 file system in which the kubelet's is looked for; a root is never
// given, since what is attached to it meets every process of the machine. Of several,
// as after a change of the kubelet's cgroup driver, it is the one that has processes. Where the
// machine has cgroup v1 too, the file system may be in dir/unified.
func PodsCgroup(dir string) (string, error) {
	base, err := cgroup2(dir)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(base, "cgroup.events")); err == nil { // a root has none
		return base, nil
	}
	return podsIn(base)
}

// podsIn looks for the cgroup of pods in a root.
func podsIn(base string) (string, error) {
	var there, used []string
	for _, name := range kubepods {
		dir := filepath.Join(base, name)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if there = append(there, dir); populated(dir) {
			used = append(used, dir)
		}
	}
	switch {
	case len(there) == 0:
		return "", fmt.Errorf("no cgroup of pods in %s (kubepods.slice, kubepods): cgroup v1, or no pod yet", base)
	case len(there) == 1:
		return there[0], nil
	case len(used) == 1: // the kubelet's cgroup driver is another one than it was
		return used[0], nil
	}
	return "", fmt.Errorf("%d of the cgroups %s have processes: remove those that are not the pods', or name the right one by --cgroup", len(used), strings.Join(there, " and "))
}

// populated says that a cgroup, or one in it, has processes.
func populated(dir string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
	return err == nil && strings.Contains(string(text), "populated 1")
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
