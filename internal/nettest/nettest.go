// Package nettest gives tests network namespaces of their own. It works as root
// and, by re-executing the test binary in a user namespace, without root.
// It is for tests alone.
package nettest

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"
)

const marker = "PODLANE_NETTEST"

// Main is for TestMain: it makes sure that the tests of the package may make
// network namespaces. Without root it runs the same test binary again as root
// of a new user namespace; where the distribution forbids that, the tests run
// as they are and New skips them by name.
func Main(m *testing.M) {
	if os.Getenv(marker) != "" {
		_ = exec.Command("ip", "link", "set", "lo", "up").Run() // the new namespace's loopback is down
		os.Exit(m.Run())
	}
	if os.Geteuid() == 0 {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if err := cmd.Run(); err != nil {
		if exit, ok := err.(*exec.ExitError); ok {
			os.Exit(exit.ExitCode())
		}
		os.Exit(m.Run())
	}
	os.Exit(0)
}

// New puts the calling test into a new, empty network namespace with lo up, and
// gives it. The goroutine is locked to its thread, and the thread is thrown away
// with the test, so a test that calls New must not be parallel with itself.
func New(t testing.TB) netns.NsHandle {
	t.Helper()
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatalf("own network namespace: %v", err)
	}
	ns, err := netns.New()
	if err != nil {
		runtime.UnlockOSThread()
		t.Skipf("no new network namespace: %v (run as root, or allow user namespaces)", err)
	}
	t.Cleanup(func() {
		_ = netns.Set(old)
		_ = old.Close()
		_ = ns.Close()
		runtime.UnlockOSThread()
	})
	Run(t, "ip", "link", "set", "lo", "up")
	return ns
}

// Make gives one more namespace without entering it.
func Make(t testing.TB) netns.NsHandle {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatalf("own network namespace: %v", err)
	}
	defer here.Close()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	Run(t, "ip", "link", "set", "lo", "up")
	if err := netns.Set(here); err != nil {
		t.Fatalf("back to the test's namespace: %v", err)
	}
	return ns
}

// Do runs f in ns, on the calling thread, and comes back.
func Do(t testing.TB, ns netns.NsHandle, f func()) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatalf("own network namespace: %v", err)
	}
	defer here.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatalf("enter namespace: %v", err)
	}
	defer func() { _ = netns.Set(here) }()
	f()
}

// Run runs a command in the calling thread's namespace, fails the test when it
// fails, and gives its standard output. A test whose command is not installed
// is skipped by name.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("needs %s: %v", name, err)
	}
	var out, errs strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}
