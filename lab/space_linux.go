package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// space is a set of namespaces that processes are started in: a node's or a
// pod's. They live as long as the handles are open or the network namespace is
// pinned at path.
type space struct {
	net, mnt, uts *os.File // mnt and uts are nil where they are the holder's own
	cgroup        *os.File // that processes are started in; nil is the holder's
	path          string   // where the network namespace is bound, as CNI_NETNS names it
}

// onThread runs f on a thread of its own that is thrown away afterwards, since
// what f does to the thread's namespaces must not be met by other goroutines.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

// newSpace makes the namespaces of flags (CLONE_NEWNET and others), runs setup
// inside them and binds the network namespace to path.
func newSpace(path string, flags int, setup func() error) (*space, error) {
	s := &space{path: path}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	err := onThread(func() error {
		// The binding must be seen in the holder's mount namespace, so it comes
		// before the thread leaves that.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind the network namespace to %s: %w", path, err)
		}
		if err := unix.Unshare(flags &^ unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new namespaces: %w", err)
		}
		if setup != nil {
			if err := setup(); err != nil {
				return err
			}
		}
		return s.open(flags)
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *space) open(flags int) error {
	for _, h := range []struct {
		flag int
		name string
		to   **os.File
	}{{unix.CLONE_NEWNET, "net", &s.net}, {unix.CLONE_NEWNS, "mnt", &s.mnt}, {unix.CLONE_NEWUTS, "uts", &s.uts}} {
		if flags&h.flag == 0 {
			continue
		}
		f, err := os.Open(filepath.Join("/proc/thread-self/ns", h.name))
		if err != nil {
			return err
		}
		*h.to = f
	}
	return nil
}

// run runs f on a thread inside the space. A nil space is the holder's own, the
// outside.
func (s *space) run(f func() error) error {
	return onThread(func() error {
		if err := s.enter(); err != nil {
			return err
		}
		return f()
	})
}

func (s *space) enter() error {
	if s == nil {
		return nil
	}
	if s.mnt != nil {
		// A thread that shares its root and working folder with others may not
		// change its mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
	}
	for _, h := range []struct {
		f    *os.File
		flag int
	}{{s.net, unix.CLONE_NEWNET}, {s.uts, unix.CLONE_NEWUTS}, {s.mnt, unix.CLONE_NEWNS}} {
		if h.f == nil {
			continue
		}
		if err := unix.Setns(int(h.f.Fd()), h.flag); err != nil {
			return fmt.Errorf("enter %s: %w", s.path, err)
		}
	}
	return nil
}

// close lets go of the namespaces. Those without processes end.
func (s *space) close() {
	for _, f := range []*os.File{s.net, s.mnt, s.uts} {
		if f != nil {
			_ = f.Close()
		}
	}
	_ = unix.Unmount(s.path, unix.MNT_DETACH)
	_ = os.Remove(s.path)
}
