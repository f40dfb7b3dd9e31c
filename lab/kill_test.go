package lab_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// forUsers runs f for each user that can have labs.
func forUsers(t *testing.T, f func(t *testing.T, u user)) {
	for _, u := range users() {
		t.Run(u.name, func(t *testing.T) {
			needLabs(t, u)
			program(t)
			before := machine()
			f(t, u)
			sameMachine(t, before)
		})
	}
}

// TestUp_frontEnds ends the front at any moment of `lab up`: with Ctrl-C nothing
// stays, with SIGKILL nothing stays after `lab down`.
func TestUp_frontEnds(t *testing.T) {
	forUsers(t, func(t *testing.T, u user) {
		for _, after := range []time.Duration{0, 5, 10, 20, 40, 80, 150, 300, 600} {
			for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
				t.Run(fmt.Sprintf("%v after %v", sig, after*time.Millisecond), func(t *testing.T) {
					endFront(t, u, sig, after*time.Millisecond)
				})
			}
		}
	})
}

func endFront(t *testing.T, u user, sig syscall.Signal, after time.Duration) {
	name := newName()
	up := u.command(t, "lab", "up", "--name", name)
	var out bytes.Buffer
	up.Stdout, up.Stderr = &out, &out
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
	_ = up.Process.Signal(sig)
	err := up.Wait()
	finished := err == nil // it was faster
	if sig == syscall.SIGKILL || finished {
		down := u.command(t, "lab", "down", "--name", name)
		if text, err := down.CombinedOutput(); err != nil && !strings.Contains(string(text), "no such lab") {
			t.Errorf("down: %v: %s", err, text)
		}
	}
	if left := leftovers(u.dir(name)); left != "" {
		t.Errorf("left: %s (up said: %v %s)", left, err, out.String())
		_ = u.command(t, "lab", "down", "--name", name).Run()
	}
}

// TestExec covers what a script cannot: descriptors, statuses and Ctrl-C.
func TestExec(t *testing.T) {
	forUsers(t, func(t *testing.T, u user) {
		name := newName()
		run(t, u.command(t, "lab", "up", "--name", name, "--nodes", "1", "--ip-family", "ipv4"))
		defer func() { run(t, u.command(t, "lab", "down", "--name", name)) }()
		execIn := func(args ...string) *exec.Cmd {
			return u.command(t, append([]string{"lab", "exec", "--name", name, "node/n1", "--"}, args...)...)
		}
		t.Run("input and output", func(t *testing.T) {
			cmd := execIn("sh", "-c", "tr a-z A-Z; echo err >&2; exit 7")
			var out, errs bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("hello"), &out, &errs
			err := cmd.Run()
			if out.String() != "HELLO" || errs.String() != "err\n" || cmd.ProcessState.ExitCode() != 7 {
				t.Errorf("got %q, %q, %v; want HELLO, err, status 7", out.String(), errs.String(), err)
			}
		})
		t.Run("a signal's status", func(t *testing.T) {
			cmd := execIn("sh", "-c", "kill -TERM $$")
			if err := cmd.Run(); cmd.ProcessState.ExitCode() != 128+15 {
				t.Errorf("got %v, want status 143", err)
			}
		})
		for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
			t.Run(fmt.Sprint("front gets ", sig), func(t *testing.T) { interruptExec(t, execIn, sig) })
		}
	})
}

// interruptExec ends the front of an exec; the process in the lab must end too,
// also one that ignores SIGINT.
func interruptExec(t *testing.T, execIn func(...string) *exec.Cmd, sig syscall.Signal) {
	const script = `trap "" INT; echo ready; sleep 4242; true`
	cmd := execIn("sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Signal(sig)
	_ = cmd.Wait()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left := run(t, execIn("sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep [4]242' || true"))
		if strings.TrimSpace(left) == "0" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the process in the lab lives on: %s", left)
		}
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args[1:], " "), err, out)
	}
	return string(out)
}

// TestUp_userNamespacesForbidden runs as an ordinary user where the kernel's limit
// forbids user namespaces, as some distributions do.
func TestUp_userNamespacesForbidden(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to set the limit in a user namespace of its own")
	}
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Skip("needs setpriv (util-linux)")
	}
	name := newName()
	script := fmt.Sprintf("echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --reuid %d --regid %d --clear-groups %s lab up --name %s", nobody, nobody, program(t), name)
	cmd := exec.Command("sh", "-c", script)
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: nobody + 1}}
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "podlane: this machine does not let an ordinary user make user namespaces") ||
		!strings.Contains(string(out), "`sudo podlane lab ...` works") || strings.Count(string(out), "\n") != 1 {
		t.Errorf("got %v: %q; want one line that says that sudo works", err, out)
	}
	if left := leftovers(user{cred: &syscall.Credential{Uid: nobody}}.dir(name)); left != "" {
		t.Errorf("left: %s", left)
	}
}
