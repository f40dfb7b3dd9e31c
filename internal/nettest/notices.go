package nettest

import (
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Listener gives the file descriptor of this process by which the kernel tells of changes
// in the calling thread's namespace, of a netlink protocol.
func Listener(t testing.TB, protocol int) int {
	t.Helper()
	here := func(fd int) uint64 {
		cookie, _ := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return cookie
	}
	own, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(own)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fds {
		fd, _ := strconv.Atoi(f.Name())
		name, _ := unix.Getsockname(fd)
		netlink, is := name.(*unix.SockaddrNetlink)
		if !is || netlink.Groups == 0 || here(fd) != here(own) {
			continue
		}
		if p, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err == nil && p == protocol {
			return fd
		}
	}
	t.Fatal("nobody listens")
	return -1
}

// Break has all that is read from a socket fail as soon as something comes.
func Break(t testing.TB, socket int) {
	t.Helper()
	kept, err := unix.Dup(socket) // so that what waits for something to read is told of it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(kept) })
	other, err := os.Open(os.DevNull)
	if err == nil {
		defer other.Close()
		err = unix.Dup3(int(other.Fd()), socket, unix.O_CLOEXEC)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Overflow has a socket hold next to nothing from now on.
func Overflow(t testing.TB, socket int) {
	t.Helper()
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
}
