package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/embedded"
)

// privateMounts makes the holder's mount namespace its own: nothing mounted
// here is seen on the machine, and all of it goes with the holder.
func privateMounts(dir, executable string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	for _, name := range []string{"netns", "bin"} {
		path := filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o700); err != nil {
			return err
		}
		if err := unix.Mount("podlane-lab", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
			return fmt.Errorf("mount a tmpfs on %s: %w", path, err)
		}
	}
	// Without root there is no BPF, and the agents' fast path is off.
	if bpf := filepath.Join(dir, "bpf"); os.Mkdir(bpf, 0o700) == nil {
		_ = unix.Mount("bpf", bpf, "bpf", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700")
	}
	if err := keepExecutable(executable, filepath.Join(dir, "bin", "podlane")); err != nil {
		return err
	}
	if err := installPlugin(filepath.Join(dir, "bin")); err != nil {
		return err
	}
	// Where a container's runtime covers parts of /proc, the kernel refuses a
	// new one; the old one then serves, with the machine's PIDs.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// keepExecutable has the program at path for as long as the lab lives: `go run`
// deletes it when the front ends. A file that is bound stays.
func keepExecutable(executable, path string) error {
	if err := os.WriteFile(path, nil, 0o700); err != nil {
		return err
	}
	if unix.Mount(executable, path, "", unix.MS_BIND, "") == nil {
		return nil
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_WRONLY, 0o700)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Close())
}

// installPlugin puts the CNI plugin beside the program: the small one, where this
// build has it, else the program itself.
func installPlugin(dir string) error {
	if !embedded.Embedded() {
		return os.Symlink("podlane", filepath.Join(dir, pluginName))
	}
	_, err := embedded.Install(dir)
	return err
}

// podMounts is run in a pod's new mount namespace: it lets go of the network
// namespaces of others, which this copy of the mounts would keep alive, and puts
// the pod's files (etc/NAME in dir) over those of /etc.
func podMounts(netnsDir, dir string) error {
	if err := unix.Unmount(netnsDir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", netnsDir, err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "etc"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := cover(filepath.Join(dir, "etc", f.Name()), "/etc/"+f.Name()); err != nil {
			return err
		}
	}
	// A name service cache of the machine would answer in the pod's name.
	for _, cache := range []string{"/run/nscd", "/var/run/nscd"} {
		if _, err := os.Stat(cache); err == nil {
			_ = unix.Mount("podlane-lab", cache, "tmpfs", 0, "")
		}
	}
	return nil
}

// cover binds a file over another. A target that is missing, or is a link to
// something missing, is passed over where nothing reads it without it.
func cover(file, target string) error {
	err := unix.Mount(file, target, "", unix.MS_BIND, "")
	if errors.Is(err, unix.ENOENT) && filepath.Base(target) == "nsswitch.conf" {
		return nil // a C library that has none reads none
	}
	if err != nil {
		return fmt.Errorf("bind the pod's file over %s (it must exist on this machine): %w", target, err)
	}
	return nil
}
