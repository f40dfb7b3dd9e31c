// Package node gives network namespaces that stand for nodes, and runs service
// proxies in them: the agent of Podlane and the real kube-proxy, fed by the same
// API. It measures them from outside, all in the same way.
package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"

	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/test/kubeproxy/internal/api"
)

// Name is the name of every node in its API.
const Name = "n1"

// Addr is every node's address; its namespace has a client beside it at ClientAddr.
const Addr, ClientAddr = "192.0.2.1", "192.0.2.2"

// Node is a namespace with an API server on its loopback.
type Node struct {
	ns, client netns.NsHandle
	API        *api.Server
	listener   net.Listener
	dir        string
	kubeconfig string
	generation *nft.Conn
}

// New makes a node. dir is for its files.
func New(dir string) (*Node, error) {
	n := &Node{API: api.New(), dir: dir, kubeconfig: filepath.Join(dir, "kubeconfig")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.ns, err = namespace(); err != nil {
		return nil, err
	}
	if n.client, err = namespace(); err != nil {
		return nil, err
	}
	if err := n.setUp(); err != nil {
		return nil, err
	}
	go n.API.Serve(n.listener)
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u, user: {}}]}`, n.listener.Addr())
	return n, os.WriteFile(n.kubeconfig, []byte(text), 0o600)
}

// namespace makes a network namespace with loopback up.
func namespace() (ns netns.NsHandle, err error) {
	err = onThread(func() error {
		if ns, err = netns.New(); err != nil {
			return fmt.Errorf("network namespace: %w (run as root)", err)
		}
		return ip("link set lo up")
	})
	return ns, err
}

// onThread runs f on a thread of its own, which is thrown away.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // without unlocking: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func ip(args string) error {
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", args, err, out)
	}
	return nil
}

// Do runs f in the node's namespace, on a thread of its own.
func (n *Node) Do(f func() error) error { return in(n.ns, f) }

// DoClient runs f in the namespace of the client beside the node.
func (n *Node) DoClient(f func() error) error { return in(n.client, f) }

func in(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

func (n *Node) setUp() error {
	err := n.Do(func() error {
		for _, args := range []string{
			fmt.Sprintf("link add eth0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), int(n.client)),
			"addr add " + Addr + "/24 dev eth0", "link set eth0 up",
		} {
			if err := ip(args); err != nil {
				return err
			}
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		var err error
		if n.listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		n.generation, err = nft.Dial(0)
		return err
	})
	if err != nil {
		return err
	}
	return n.DoClient(func() error {
		for _, args := range []string{"addr add " + ClientAddr + "/24 dev eth0", "link set eth0 up", "route add default via " + Addr} {
			if err := ip(args); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close ends the API and frees the namespace, which goes with its last process.
func (n *Node) Close() {
	_ = n.listener.Close()
	n.API.Disconnect()
	_ = n.generation.Close()
	_ = n.ns.Close()
	_ = n.client.Close()
}

// Generation gives the number that each transaction of the node's nf_tables
// raises, those of iptables over nftables too.
func (n *Node) Generation() uint32 {
	g, err := n.generation.Generation()
	if err != nil {
		return 0
	}
	return g
}

// Process is a proxy that runs.
type Process struct {
	cmd   *exec.Cmd
	Log   string
	ended chan struct{}
}

// Start starts a program in the node; what it prints goes to a file.
func (n *Node) Start(name string, args ...string) (*Process, error) {
	p := &Process{Log: filepath.Join(n.dir, filepath.Base(name)+"-"+strconv.FormatInt(time.Now().UnixNano(), 36)+".log"), ended: make(chan struct{})}
	log, err := os.Create(p.Log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	started := make(chan error)
	go func() {
		// The thread must live as long as the program, whose end it announces
		// (Pdeathsig).
		runtime.LockOSThread()
		if err := netns.Set(n.ns); err != nil {
			started <- err
			return
		}
		p.cmd = exec.Command(name, args...)
		p.cmd.Stdout, p.cmd.Stderr = log, log
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait()
			close(p.ended)
		}
	}()
	return p, <-started
}

// Kill ends the process without warning.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// Ended says that the process ended by itself, with the end of what it printed.
func (p *Process) Ended() error {
	select {
	case <-p.ended:
		data, _ := os.ReadFile(p.Log)
		return fmt.Errorf("%s ended: %s", p.cmd.Path, data[max(0, len(data)-2000):])
	default:
		return nil
	}
}

// CPU gives the processor time of the process and of its ended children.
func (p *Process) CPU() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	var ticks int64
	for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime
		if i < len(fields) {
			t, _ := strconv.ParseInt(fields[i], 10, 64)
			ticks += t
		}
	}
	return time.Duration(ticks) * (time.Second / 100) // USER_HZ
}

// Peak gives the most memory that was resident, in bytes (VmHWM).
func (p *Process) Peak() int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kb << 10
		}
	}
	return 0
}

// children says whether the process has some that run: nft, iptables-restore.
func (p *Process) children() bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", p.cmd.Process.Pid, p.cmd.Process.Pid))
	if err == nil && len(strings.TrimSpace(string(data))) > 0 {
		return true
	}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.cmd.Process.Pid))
	for _, t := range tasks {
		if data, err := os.ReadFile(t); err == nil && len(strings.TrimSpace(string(data))) > 0 {
			return true
		}
	}
	return false
}

// Quiet waits until the process has done nothing for the time quiet, and gives
// when the kernel's rules last changed before, and when the process was last
// seen at work. ok is false where it was still at work at the deadline.
func (n *Node) Quiet(ctx context.Context, p *Process, since uint32, quiet time.Duration) (changed, worked time.Time, ok bool) {
	last, cpu := since, p.CPU()
	worked = time.Now()
	step := min(max(quiet/100, 200*time.Microsecond), 5*time.Millisecond)
	for next := time.Now(); ; {
		now := time.Now()
		if g := n.Generation(); g != last {
			last, changed, worked = g, now, now
		}
		if now.After(next) { // reading /proc costs more
			if c := p.CPU(); c-cpu > 0 || p.children() {
				cpu, worked = c, now
			}
			next = now.Add(10 * time.Millisecond)
		}
		if now.Sub(worked) > quiet {
			return changed, worked, true
		}
		if ctx.Err() != nil || p.Ended() != nil {
			return changed, worked, false
		}
		time.Sleep(step)
	}
}
