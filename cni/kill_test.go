package cni

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/podlane/podlane/internal/nettest"
)

// agentEnv makes the test program an agent that kills itself at the step it
// names: "DIR STEP".
const agentEnv = "PODLANE_CNI_AGENT"

// agentMain is the agent of the kill tests. It tells on standard output that it
// listens.
func agentMain() int {
	dir, step, _ := strings.Cut(os.Getenv(agentEnv), " ")
	l, _, err := open(dir, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	go func() { _ = l.server.Serve(context.Background()) }()
	l.runUntil(step)
	return 0
}

func die() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }

// runUntil is run with a kill at one step of the first ADD or DEL.
func (l *loop) runUntil(step string) {
	request := <-l.server.Requests()
	command, point, _ := strings.Cut(step, ":")
	for request.Command != command {
		l.plugin.Handle([]*Request{request}, l.apply)
		request = <-l.server.Requests()
	}
	calls := []*call{parse(request)}
	switch point {
	case "unnamed": // half of the record is written, and has not its name
		f, err := l.plugin.record.spares.take()
		if err == nil {
			_, err = f.WriteString(`{"version": 1, "network": "podl`)
		}
		if err != nil {
			panic(err)
		}
		die()
	case "before-apply":
		l.before = die
	case "after-apply":
		l.after = die
	case "planned":
		l.plugin.plan(calls)
		die()
	case "unwired":
		a, _ := l.plugin.record.Get(calls[0].key())
		_ = l.plugin.kernel.DeletePod(a.Link)
		die()
	}
	l.plugin.Handle([]*Request{request}, l.apply)
	die()
}

// startKilled starts an agent in a process of its own, in the node's namespace.
func (n *node) startKilled(step string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+n.dir+" "+step)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		n.t.Fatalf("agent: %q %v", line, err)
	}
	return cmd
}

// killed waits for the agent's death and fails the test when it ended otherwise.
func killed(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	err := cmd.Wait()
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("agent ended with %v and not by the kill", err)
	}
}

// TestKill_add kills the agent after each step of an ADD. The runtime then either
// repeats ADD, or gives up: DEL while the agent is away, and the sandbox goes.
func TestKill_add(t *testing.T) {
	for _, step := range []string{"unnamed", "planned", "before-apply", "after-apply", "answered"} {
		for _, repeat := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,repeat=%v", step, repeat), func(t *testing.T) {
				n := newNode(t, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")})
				p := newPod(t, "web-0")
				cmd := n.startKilled("ADD:" + step)
				_, err := n.add(p)
				killed(t, cmd)
				if step != "answered" && code(err) != 11 {
					t.Errorf("ADD while the agent is killed: %v, want code 11", err)
				}
				if want := step != "unnamed"; want != (len(n.records()) == 1) {
					t.Errorf("records %v, want the pod's: %v", n.records(), want)
				}
				if repeat {
					n.start()
					result := n.mustAdd(p)
					n.ping(p, "10.1.2.1")
					if links := n.podLinks(); len(links) != 1 || links[0] != result.Interfaces[0].Name {
						t.Errorf("links %v", links)
					}
					if err := n.check(p); err != nil {
						t.Errorf("CHECK: %v", err)
					}
					if err := n.del(p); err != nil {
						t.Errorf("DEL: %v", err)
					}
				} else {
					if err := n.del(p); err != nil {
						t.Errorf("DEL with the agent away: %v", err)
					}
					if len(n.podLinks()) > 0 {
						nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "link", "del", "eth0") })
					}
					n.start()
				}
				n.empty()
			})
		}
	}
}

// TestKill_del kills the agent after each step of a DEL. The shim tells the
// runtime that all is well; the sandbox goes, or the runtime repeats.
func TestKill_del(t *testing.T) {
	for _, step := range []string{"before-apply", "after-apply", "unwired", "answered"} {
		for _, repeat := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s,repeat=%v", step, repeat), func(t *testing.T) {
				n := newNode(t, []netip.Prefix{netip.MustParsePrefix("10.1.2.0/24")})
				p := newPod(t, "web-0")
				cmd := n.startKilled("DEL:" + step)
				n.mustAdd(p)
				if err := n.del(p); err != nil {
					t.Errorf("DEL while the agent is killed: %v", err)
				}
				killed(t, cmd)
				if repeat {
					n.start()
					if err := n.del(p); err != nil {
						t.Errorf("DEL again: %v", err)
					}
				} else {
					if len(n.podLinks()) > 0 {
						nettest.Do(t, p.ns, func() { nettest.Run(t, "ip", "link", "del", "eth0") })
					}
					n.start()
				}
				n.empty()
			})
		}
	}
}
