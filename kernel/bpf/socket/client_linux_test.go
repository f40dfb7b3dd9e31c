package socket

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/internal/nettest"
)

// asClient makes the test binary a client: a process of its own, so that it can be
// in a cgroup of its own.
const asClient = "PODLANE_SOCKET_CLIENT"

func TestMain(m *testing.M) {
	if os.Getenv(asClient) != "" {
		if err := serveClient(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	nettest.Main(m)
}

// task is what a client is told to do; with several addresses it takes the same
// socket from one to the next.
type task struct {
	UDP    bool
	Mapped bool // IPv4 by an IPv6 socket
	To     []netip.AddrPort
	Keep   bool // the connection stays open
	Again  int  // so many more times, with new sockets
}

// met is what it met: the last one's peer by getpeername, and who answered.
type met struct {
	Peer   netip.AddrPort
	Server string
	Err    string
}

// serveClient does tasks, one JSON document a line.
func serveClient(in io.Reader, out io.Writer) error {
	read, write := json.NewDecoder(bufio.NewReader(in)), json.NewEncoder(out)
	for {
		var t task
		if err := read.Decode(&t); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var all []met
		for range t.Again + 1 {
			all = append(all, t.do())
		}
		if err := write.Encode(all); err != nil {
			return err
		}
	}
}

func (t task) do() (m met) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if t.Mapped || t.To[0].Addr().Is6() {
		family = unix.AF_INET6
	}
	if t.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return met{Err: err.Error()}
	}
	if !t.Keep {
		defer unix.Close(fd)
	}
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	for i, to := range t.To {
		if i > 0 { // back to a socket that is not connected
			unspec := [16]byte{} // AF_UNSPEC
			_, _, _ = syscall.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), 16)
		}
		m = talk(fd, family, to, t.UDP)
	}
	return m
}

func talk(fd, family int, to netip.AddrPort, udp bool) (m met) {
	if err := unix.Connect(fd, sockaddr(family, to)); err != nil {
		return met{Err: err.Error()}
	}
	if udp {
		if _, err := unix.Write(fd, []byte("?")); err != nil {
			return met{Err: err.Error()}
		}
	}
	var buf [64]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return met{Err: err.Error()}
	}
	m.Server = string(buf[:n])
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return met{Err: err.Error()}
	}
	switch p := peer.(type) {
	case *unix.SockaddrInet4:
		m.Peer = netip.AddrPortFrom(netip.AddrFrom4(p.Addr), uint16(p.Port))
	case *unix.SockaddrInet6:
		m.Peer = netip.AddrPortFrom(netip.AddrFrom16(p.Addr), uint16(p.Port))
	}
	return m
}

func sockaddr(family int, to netip.AddrPort) unix.Sockaddr {
	if family == unix.AF_INET6 {
		return &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	}
	return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
}

// client is such a process.
type client struct {
	t     testing.TB
	write *json.Encoder
	read  *json.Decoder
	end   func()
}

// newClient starts one in the calling thread's network namespace and in a cgroup.
func newClient(t testing.TB, cgroup string) *client {
	t.Helper()
	dir, err := os.Open(cgroup)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), asClient+"=1", "GODEBUG=asyncpreemptoff=1") // no signal interrupts connect()
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	end := sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(end)
	return &client{t, json.NewEncoder(in), json.NewDecoder(out), end}
}

func (c *client) do(t task) []met {
	c.t.Helper()
	must(c.t, c.write.Encode(t))
	var all []met
	must(c.t, c.read.Decode(&all))
	return all
}

// one connects once.
func (c *client) one(to ...netip.AddrPort) met { c.t.Helper(); return c.do(task{To: to})[0] }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newCgroup gives a cgroup of the test's own, or skips.
func newCgroup(t testing.TB) string {
	t.Helper()
	base, err := cgroup2("/sys/fs/cgroup")
	if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp(base, "podlane-test-")
	if err != nil {
		t.Skipf("no cgroup of our own: %v (needs root)", err)
	}
	t.Cleanup(func() { removeCgroup(t, dir) })
	return dir
}

// removeCgroup waits: the kernel lets go of a process's cgroup a moment after its end.
func removeCgroup(t testing.TB, dir string) {
	t.Helper()
	var err error
	for range 100 {
		if err = unix.Rmdir(dir); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error(err)
}

func bpffs(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Skipf("no BPF file system: %v (needs root)", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return filepath.Join(dir, "node")
}

// serve answers at an address with that address, in the calling thread's network
// namespace.
func serve(t testing.TB, at netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", at.String())
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, at.String())
			_ = c.(*net.TCPConn).CloseWrite()
			go func() { _, _ = io.Copy(io.Discard, c); _ = c.Close() }()
		}
	}()
}
