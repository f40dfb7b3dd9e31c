package shim

import (
	"errors"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// openNamespace opens a network namespace by its path, and a route netlink
// socket that belongs to it. The calling thread is inside the namespace for the
// time of one system call.
func openNamespace(path string) (namespace, socket int, err error) {
	// O_NONBLOCK: what the path names may be a pipe.
	namespace, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, -1, os.NewSyscallError("open", err)
	}
	socket, err = socketIn(namespace)
	if err != nil {
		_ = unix.Close(namespace)
		return -1, -1, err
	}
	return namespace, socket, nil
}

func socketIn(namespace int) (int, error) {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return -1, os.NewSyscallError("open own namespace", err)
	}
	defer unix.Close(own)
	if err := differ(own, namespace); err != nil {
		runtime.UnlockOSThread()
		return -1, err
	}
	if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return -1, os.NewSyscallError("setns", err)
	}
	socket, err := netlinkSocket()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: nobody else may run in the wrong namespace.
		return -1, os.NewSyscallError("setns back", back)
	}
	runtime.UnlockOSThread()
	if err != nil {
		return -1, os.NewSyscallError("netlink socket", err)
	}
	return socket, nil
}

// netlinkSocket is bound here, so that it has a port number before it travels.
func netlinkSocket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// differ refuses the plugin's own namespace: wiring it would take the node's
// network away. (A node and its pod do not share one; a pod on the host's
// network is never given to a CNI plugin.)
func differ(own, namespace int) error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(own, &a), unix.Fstat(namespace, &b)); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if a.Dev == b.Dev && a.Ino == b.Ino {
		return errors.New("is the namespace of the plugin itself")
	}
	return nil
}
