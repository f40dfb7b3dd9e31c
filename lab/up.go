package lab

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// Options say what a lab is made of. The zero value is a lab of two nodes.
type Options struct {
	Name  string `json:"name"`  // default DefaultName
	Nodes int    `json:"nodes"` // default 2; ignored where Objects has Nodes
	// Overlay is the agents' overlay mode: auto (default), vxlan or direct.
	Overlay string `json:"overlay"`
	// VXLANPort is the UDP port of VXLAN; default overlay.DefaultPort.
	VXLANPort uint16 `json:"vxlan_port"`
	// ProxyBackend is the agents' way to bring Services to the kernel: auto (default),
	// nftables or iptables.
	ProxyBackend string `json:"proxy_backend"`
	// FastPath is the agents' fast path: auto, on or off; default fastpath.Default.
	FastPath string `json:"fast_path"`
	// SocketLB is the agents' translation at the socket: auto, on or off; default
	// agent.DefaultSocketLB.
	SocketLB string `json:"socket_lb"`
	// Families are ipv4, ipv6 or dual. The default is dual, or ipv4 where the
	// kernel has no IPv6.
	Families string `json:"families"`
	// Objects are applied before the nodes' agents start.
	Objects *file.Objects `json:"objects,omitempty"`
	// Executable is the podlane to run; default the running program.
	Executable string `json:"executable"`
	// Timeout is how long Up waits until all is Ready; default a minute.
	Timeout time.Duration `json:"-"`
	// Progress is told what goes on; it may be nil.
	Progress func(string) `json:"-"`
}

func (o *Options) fill() error {
	if o.Name == "" {
		o.Name = DefaultName
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 1 || o.Nodes > 200 {
		return fmt.Errorf("%d nodes: a lab has 1 to 200", o.Nodes)
	}
	if o.ProxyBackend == "" {
		o.ProxyBackend = "auto"
	}
	if o.Overlay == "" {
		o.Overlay = string(overlay.Auto)
	}
	if modes := []overlay.Mode{overlay.Auto, overlay.VXLAN, overlay.Direct}; !slices.Contains(modes, overlay.Mode(o.Overlay)) {
		return fmt.Errorf("overlay %q: want auto, vxlan or direct", o.Overlay)
	}
	o.VXLANPort = cmp.Or(o.VXLANPort, overlay.DefaultPort)
	if err := (overlay.Config{Port: o.VXLANPort}).Valid(); err != nil {
		return err
	}
	mode, err := fastpath.ParseMode(o.FastPath)
	if err != nil {
		return fmt.Errorf("fast path: %w", err)
	}
	if mode == fastpath.On && !asRoot() {
		return errors.New("the fast path needs root, without which there is no BPF")
	}
	o.FastPath = string(mode)
	sockets, err := agent.ParseSocketLB(o.SocketLB)
	if err != nil {
		return err
	}
	if sockets == fastpath.On && !asRoot() {
		return errors.New("the translation at the socket needs root, without which there is no BPF")
	}
	o.SocketLB = string(sockets)
	if o.Families == "" {
		o.Families = "dual"
		if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
			o.Families = "ipv4"
		}
	}
	if o.Objects == nil {
		o.Objects = &file.Objects{}
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		o.Executable = exe
	}
	return nil
}

// ProblemsError has lines that each name an object that cannot be used as it is,
// or something else that went wrong beside what was done.
type ProblemsError struct{ Lines []string }

// Error gives the lines so that each is one of podlane's when printed after
// "podlane: ".
func (e *ProblemsError) Error() string { return strings.Join(e.Lines, "\npodlane: ") }

// JoinLines makes one error of several, with a line for each, or nil.
func JoinLines(errs ...error) error {
	var kept []error
	var lines []string
	for _, err := range errs {
		if err != nil {
			kept, lines = append(kept, err), append(lines, err.Error())
		}
	}
	if len(kept) < 2 {
		return errors.Join(kept...)
	}
	return &ProblemsError{lines}
}

// Up starts a lab and waits until all in it is Ready. With an error it gives the
// Client too where the lab is up all the same: when something is not Ready in
// time, or an object cannot be used (a *ProblemsError). When ctx ends before,
// nothing stays.
func Up(ctx context.Context, opts Options) (*Client, error) {
	if err := opts.fill(); err != nil {
		return nil, err
	}
	dir, err := Dir(opts.Name)
	if err != nil {
		return nil, err
	}
	lock, err := makeDir(dir)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("lab %s is up already (`podlane lab down%s` ends it, `--name` gives another one a name)", opts.Name, nameFlag(opts.Name))
	}
	if err != nil {
		return nil, err
	}
	opts.Progress("starting the lab in " + dir)
	if opts.FastPath == string(fastpath.Auto) && !asRoot() {
		opts.Progress("the fast path is off: without root there is no BPF")
	}
	err = startHolder(ctx, dir, lock, opts)
	if err != nil {
		_ = removeDir(dir)
	}
	_ = lock.Close() // the holder has it
	if err != nil {
		return nil, err
	}
	c := &Client{dir}
	return c, c.firstWait(ctx, opts)
}

func nameFlag(name string) string {
	if name == DefaultName {
		return ""
	}
	return " --name " + name
}

func (c *Client) firstWait(ctx context.Context, opts Options) error {
	late := fmt.Errorf("not all is ready after %v", opts.Timeout)
	wait, cancel := context.WithTimeoutCause(ctx, opts.Timeout, late)
	defer cancel()
	st, err := c.Wait(wait, opts.Progress)
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), c.Down(context.WithoutCancel(ctx)))
	}
	if err == nil && len(st.Problems) > 0 {
		err = &ProblemsError{st.Problems}
	}
	return err
}

// startHolder starts the holder, hands it the options and the folder's lock and
// waits until it answers on its socket.
func startHolder(ctx context.Context, dir string, lock *os.File, opts Options) error {
	config, err := json.Marshal(opts)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(dir, "holder.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(opts.Executable, "lab", "hold", dir)
	cmd.Stdin = strings.NewReader(string(config))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock, readyW}
	cmd.Dir = "/"
	err = startUnshared(cmd)
	_ = readyW.Close()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer context.AfterFunc(ctx, func() { _ = ready.Close() })()
	line, err := bufio.NewReader(ready).ReadString('\n')
	if line = strings.TrimSpace(line); line == "ready" {
		return nil
	}
	_ = cmd.Process.Kill()
	<-ended
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if line != "" {
		return errors.New(line)
	}
	return fmt.Errorf("the holder ended at its start: %s", holderLastWords(dir, err))
}

func holderLastWords(dir string, err error) string {
	if text := tail(filepath.Join(dir, "holder.log"), 5); text != "" {
		return text
	}
	return err.Error()
}

// startUnshared starts cmd as the init of new namespaces: as root without a
// user namespace, else with one in which the caller is root.
func startUnshared(cmd *exec.Cmd) error {
	const base = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: base}
	if !asRoot() {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Start()
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w (%v)", errNoUserNamespaces, err)
	}
	return err
}

var errNoUserNamespaces = errors.New("this machine does not let an ordinary user make user namespaces, which a lab without root needs: `sudo podlane lab ...` works, or look at kernel.apparmor_restrict_unprivileged_userns, kernel.unprivileged_userns_clone and user.max_user_namespaces")

// asRoot says whether the lab does without a user namespace of its own.
func asRoot() bool { return os.Geteuid() == 0 && mayAdminister() }

// mayAdminister says whether the caller has CAP_SYS_ADMIN and CAP_NET_ADMIN; root in a container
// often has not.
func mayAdminister() bool {
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN
	status, err := os.Open("/proc/self/status")
	if err != nil {
		return true
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			return err != nil || caps&need == need
		}
	}
	return true
}

// killHolder ends a holder that no longer answers. Its PID is the folder's, and
// it must be a holder of this folder: PIDs are used again.
func killHolder(dir string) {
	pid := holderPID(dir)
	if pid <= 0 {
		return
	}
	args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && strings.Contains(string(args), "hold\x00"+dir+"\x00") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// holderPID gives the holder's PID as the caller sees it: the socket's peer, or
// what the holder wrote down at its start.
func holderPID(dir string) int {
	if conn, err := net.Dial("unix", filepath.Join(dir, "lab.sock")); err == nil {
		defer conn.Close()
		if pid := peerPID(conn.(*net.UnixConn)); pid > 0 {
			return pid
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "holder.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

func peerPID(conn *net.UnixConn) (pid int) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid = int(cred.Pid)
		}
	})
	return pid
}
