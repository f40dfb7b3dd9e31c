package link

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls reads and writes kernel parameters of one network namespace.
type sysctls struct {
	root  string
	netns os.FileInfo // the namespace's inode
}

func newSysctls(root string) (sysctls, error) {
	if root == "" {
		root = "/proc/sys"
	}
	ns, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return sysctls{}, fmt.Errorf("own network namespace: %w", err)
	}
	return sysctls{root, ns}, nil
}

// here refuses a thread in another network namespace, since what it would write
// is another machine's, as it were.
func (s sysctls) here() error {
	ns, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("own network namespace: %w", err)
	}
	if !os.SameFile(ns, s.netns) {
		return errors.New("sysctls: the calling thread is in another network namespace than the handle")
	}
	return nil
}

// read gives a parameter's value; ok is false where the parameter does not exist,
// as that of a link that is gone.
func (s sysctls) read(path string) (value string, ok bool, err error) {
	// Package os would ask the poller for each of these files, of which a pod has six.
	fd, err := unix.Open(filepath.Join(s.root, path), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var b [64]byte
	n, err := unix.Read(fd, b[:])
	return strings.TrimSpace(string(b[:max(n, 0)])), err == nil, err
}

// write sets a parameter that has another value: a write can have effects even
// where it changes nothing, as that of ip_forward.
func (s sysctls) write(path, value string) error {
	if had, ok, err := s.read(path); err == nil && ok && had == value {
		return nil
	}
	name := filepath.Join(s.root, path)
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(value)
		err = errors.Join(err, f.Close())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w (is the link gone, or the address family turned off in this kernel?)", err)
	}
	return err
}
