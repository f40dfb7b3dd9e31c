package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Ask sends one request to the agent's socket, with the descriptors attached to
// its first byte, and gives the reply. It waits for at most the timeout in each
// of connecting, sending and receiving. The request's Version and TimeoutMS are
// filled in. An error means that there was no reply; os.ErrPermission is among
// its causes where the caller may not use the socket.
func Ask(socket string, req Request, timeout time.Duration, fds ...int) (Reply, error) {
	req.Version, req.TimeoutMS = Version, timeout.Milliseconds()
	text, err := json.Marshal(req)
	if err != nil {
		return Reply{}, err
	}
	fd, err := dial(socket, timeout)
	if err != nil {
		return Reply{}, err
	}
	defer unix.Close(fd)
	if err := send(fd, text, fds); err != nil {
		return Reply{}, os.NewSyscallError("send", err)
	}
	text, err = receive(fd, time.Now().Add(timeout))
	if err != nil {
		return Reply{}, err
	}
	var reply Reply
	if err := json.Unmarshal(text, &reply); err != nil {
		return Reply{}, fmt.Errorf("reply of %d bytes: %w", len(text), err)
	}
	if reply.Version != Version {
		return Reply{}, fmt.Errorf("reply of version %d, want %d", reply.Version, Version)
	}
	return reply, nil
}

// dial connects to a unix socket.
func dial(path string, timeout time.Duration) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// The timeout of sending holds for connecting too: a full backlog blocks.
	err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, timeval(timeout))
	if err == nil {
		err = connect(fd, path)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, os.NewSyscallError("connect", err)
	}
	return fd, nil
}

// connect goes by way of the folder's descriptor where the path is longer than
// a socket address holds (108 bytes).
func connect(fd int, path string) error {
	if len(path) > 100 {
		dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	}
	return retry(func() error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
}

// send writes the document and says that it was all.
func send(fd int, text []byte, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for len(text) > 0 {
		n := 0
		err := retry(func() (err error) {
			n, err = unix.SendmsgN(fd, text, rights, nil, unix.MSG_NOSIGNAL)
			return err
		})
		if err != nil {
			return err
		}
		text, rights = text[n:], nil
	}
	return unix.Shutdown(fd, unix.SHUT_WR)
}

// receive reads to the end of the other side's writing.
func receive(fd int, deadline time.Time) ([]byte, error) {
	text := make([]byte, 0, 4096)
	for len(text) < MaxDocument {
		left := time.Until(deadline)
		if left <= 0 {
			return nil, os.ErrDeadlineExceeded
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, timeval(left)); err != nil {
			return nil, os.NewSyscallError("setsockopt", err)
		}
		if len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return nil, os.ErrDeadlineExceeded
		case err != nil:
			return nil, os.NewSyscallError("receive", err)
		case n == 0 && len(text) == 0:
			return nil, errors.New("closed without a reply")
		case n == 0:
			return text, nil
		}
		text = text[:len(text)+max(n, 0)]
	}
	return nil, fmt.Errorf("reply is longer than %d bytes", MaxDocument)
}

// timeval rounds up, since a zero timeval would mean for ever.
func timeval(d time.Duration) *unix.Timeval {
	tv := unix.NsecToTimeval((d + time.Microsecond).Nanoseconds())
	return &tv
}

// retry repeats what a signal interrupted; Go's own preemption sends signals,
// and a socket with a timeout is not restarted by the kernel (signal(7)).
func retry(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
