package machines

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const cgroups = "/sys/fs/cgroup"

// makeCgroups makes a cgroup in every hierarchy, as a kubelet wants its root: with
// CPUs and memory nodes (v1), or with the controllers handed down (v2).
func makeCgroups(name string) error {
	roots, err := hierarchies()
	if err != nil {
		return err
	}
	for _, root := range roots {
		if err := makeCgroup(root, strings.Split(name, "/")); err != nil {
			return err
		}
	}
	return nil
}

func makeCgroup(root string, names []string) error {
	dir := root
	for _, n := range names {
		if all, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil {
			for _, c := range strings.Fields(string(all)) {
				// What cannot be handed down is missed by the kubelet, which says so.
				_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
			}
		}
		parent := dir
		dir = filepath.Join(dir, n)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(parent, f)); err == nil && !strings.HasSuffix(root, "unified") {
				_ = os.WriteFile(filepath.Join(dir, f), value, 0)
			}
		}
	}
	return nil
}

// hierarchies gives the mounted cgroup hierarchies: one with v2.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err == nil {
		return []string{cgroups}, nil
	}
	entries, err := os.ReadDir(cgroups)
	var roots []string
	for _, e := range entries {
		if e.IsDir() {
			roots = append(roots, filepath.Join(cgroups, e.Name()))
		}
	}
	return roots, err
}

// removeCgroups removes what makeCgroups made, and what kubelets made in it, once
// all processes in it are gone.
func removeCgroups(name string) {
	roots, err := hierarchies()
	if err != nil {
		return
	}
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(root, name), func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = os.Remove(dirs[i])
		}
	}
}
