// Package machines runs a whole Kubernetes on one machine: etcd, the control
// plane's programs, and nodes with containerd and kubelet, each in namespaces of
// its own. It installs no network: that is what is tested on it.
//
// All of it lives in one PID, mount and network namespace, so that nothing is left
// when the program that entered it ends, however it ends, and the machine's own
// network and files are never touched.
package machines

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// role says what a process of this program is: it starts itself again as each of
// them.
const role = "PODLANE_E2E_ROLE"

// group names the cgroups of all that runs in the namespaces.
const group = "PODLANE_E2E_CGROUP"

// outerPID has the machine's number of the first process in the namespaces.
const outerPID = "PODLANE_E2E_PID"

// Enter makes sure that the calling program runs in namespaces of its own: it
// starts the program again in them and, when that has ended, gives its exit
// status. In them it returns with inside set. It must be called first in main, on
// the main thread, as root.
func Enter() (inside bool, status int) {
	var err error
	switch os.Getenv(role) {
	case "":
		status, err = outer()
	case "init":
		status, err = initial()
	case "node":
		err = node()
	default:
		return true, 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return false, 1
	}
	return false, status
}

// again starts this program in a role, to be killed when the caller dies.
func again(as string, flags uintptr) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), role+"="+as)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	return cmd
}

func outer() (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("a real Kubernetes needs root: containerd and kubelet do")
	}
	runtime.LockOSThread() // Pdeathsig is of the thread
	name := "podlane-e2e-" + strconv.Itoa(os.Getpid())
	os.Setenv(group, name)
	cmd := again("init", unix.CLONE_NEWPID|unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("namespaces: %w", err)
	}
	forward(cmd.Process)
	err := cmd.Wait()
	removeCgroups(name)
	removePrepared()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// forward hands the signals that ask for an end on. A terminal sends them to all
// of its processes anyway.
func forward(p *os.Process) {
	c := make(chan os.Signal, 2)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() {
		for s := range c {
			_ = p.Signal(s)
		}
	}()
}

// initial is process 1 of the namespaces: it reaps what nobody waits for, and its
// end is everyone's.
func initial() (int, error) {
	runtime.LockOSThread()
	if err := private(); err != nil {
		return 0, err
	}
	// Before /proc is mounted anew it shows what the machine calls this process.
	if pid, err := os.Readlink("/proc/self"); err == nil {
		os.Setenv(outerPID, pid)
	}
	if err := errors.Join(unix.Mount("proc", "/proc", "proc", 0, ""), unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755")); err != nil {
		return 0, fmt.Errorf("mounts: %w", err)
	}
	cmd := again("worker", 0)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	forward(cmd.Process)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == cmd.Process.Pid:
			return status.ExitStatus(), nil
		}
	}
}

// private keeps mounts from reaching the machine.
func private() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	return nil
}
