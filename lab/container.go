package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// unprobed is when a container that has no readinessProbe and listens on none of
// its ports counts as Ready all the same.
const unprobed = 5 * time.Second

// container is one container of a pod: a supervised process.
type container struct {
	p          *pod
	spec       *corev1.Container
	runs       string   // what it runs, for people
	argv       []string // nil: the command is missing
	supervisor *supervisor
	began      atomic.Int64 // of the running process, in ns of Unix time
	isReady    bool         // of the running process; look's alone
	readyOf    int          // that process's PID
}

func newContainer(p *pod, spec *corev1.Container) *container {
	c := &container{p: p, spec: spec}
	c.argv, c.runs = c.command()
	c.supervisor = newSupervisor(c.launch, p.h.poke)
	c.supervisor.log = p.logFile()
	c.supervisor.once = p.want.Spec.RestartPolicy == corev1.RestartPolicyOnFailure || p.want.Spec.RestartPolicy == corev1.RestartPolicyNever
	return c
}

// command gives what stands for the container: its own command, where it has
// one, else a stand-in for its image.
func (c *container) command() (argv []string, runs string) {
	env := c.env()
	if len(c.spec.Command) > 0 {
		argv = expand(append(append([]string{}, c.spec.Command...), c.spec.Args...), env)
		return argv, strings.Join(argv, " ")
	}
	return standInFor(c.spec, expand(c.spec.Args, env), c.p)
}

// env gives the container's environment, NAME=VALUE.
func (c *container) env() []string {
	var env []string
	for _, e := range c.spec.Env {
		value := expand([]string{e.Value}, env)[0]
		if e.ValueFrom != nil && e.ValueFrom.FieldRef != nil {
			value = c.field(e.ValueFrom.FieldRef.FieldPath)
		}
		env = append(env, e.Name+"="+value)
	}
	return env
}

// field is the downward API, as far as a lab knows the fields.
func (c *container) field(path string) string {
	switch path {
	case "metadata.name":
		return c.p.want.Name
	case "metadata.namespace":
		return c.p.want.Namespace
	case "metadata.uid":
		return string(c.p.want.UID)
	case "spec.nodeName":
		return c.p.node.Name
	case "status.hostIP":
		return c.p.node.addresses()[0].String()
	case "status.podIP":
		if ips := c.p.observed().IPs; len(ips) > 0 {
			return ips[0].String()
		}
	}
	return ""
}

// expand replaces $(NAME) as the kubelet does; an unknown one stays.
func expand(args, env []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		for _, e := range env {
			name, value, _ := strings.Cut(e, "=")
			a = strings.ReplaceAll(a, "$("+name+")", value)
		}
		out[i] = a
	}
	return out
}

func (c *container) launch() (*process, error) {
	log, err := os.OpenFile(c.p.logFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.began.Store(time.Now().UnixNano())
	proc, err := c.p.h.procs.start(c.p.space, func() (*exec.Cmd, error) {
		cmd, err := lookUp(c.argv, c.p.h.environment(append(c.env(), "HOSTNAME="+c.p.hostname())...))
		if err != nil {
			return nil, err
		}
		cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
		if c.spec.WorkingDir != "" {
			cmd.Dir = c.spec.WorkingDir
		}
		return cmd, nil
	})
	if err != nil {
		_, _ = fmt.Fprintf(log, "lab: %v\n", err)
	}
	return proc, err
}

// lookUp makes a command that is looked for in the PATH of its own environment.
func lookUp(argv, env []string) (*exec.Cmd, error) {
	if strings.Contains(argv[0], "/") {
		return &exec.Cmd{Path: argv[0], Args: argv, Env: env}, nil
	}
	for _, e := range env {
		path, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			file := filepath.Join(dir, argv[0])
			if info, err := os.Stat(file); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
				return &exec.Cmd{Path: file, Args: argv, Env: env}, nil
			}
		}
	}
	return nil, &exec.Error{Name: argv[0], Err: exec.ErrNotFound}
}

var errCompleted = errors.New("completed")

// ready gives nil, or why the container is not Ready. Once Ready it stays so
// while its process lives, unless it has a readinessProbe.
func (c *container) ready() error {
	st := c.supervisor.status()
	switch {
	case st.State == "completed":
		return errCompleted
	case st.State != "running":
		return errors.New(withReason(st.State, st.Reason))
	}
	if c.readyOf != st.PID {
		c.readyOf, c.isReady = st.PID, false
	}
	if probe := c.spec.ReadinessProbe; probe != nil && (probe.HTTPGet != nil || probe.TCPSocket != nil) {
		return c.probe(probe)
	}
	if !c.isReady {
		c.isReady = c.listens() || time.Since(time.Unix(0, c.began.Load())) > unprobed
	}
	if !c.isReady {
		return errors.New("listens on none of its ports yet")
	}
	return nil
}

// listens says whether a process of the pod's network namespace has one of the
// container's ports open; without ports it is true.
func (c *container) listens() bool {
	if len(c.spec.Ports) == 0 {
		return true
	}
	open := map[string]map[int]bool{}
	_ = c.p.space.run(func() error {
		for _, protocol := range []string{"tcp", "udp"} {
			open[protocol] = openPorts(protocol)
		}
		return nil
	})
	for _, port := range c.spec.Ports {
		if open[protocolName(port)][int(port.ContainerPort)] {
			return true
		}
	}
	return false
}

func protocolName(p corev1.ContainerPort) string {
	if p.Protocol == corev1.ProtocolUDP {
		return "udp"
	}
	return "tcp"
}

// openPorts reads the ports that are listened on in the calling thread's network
// namespace (proc_net_tcp: the state 0A is LISTEN; a bound UDP socket's is 07).
func openPorts(protocol string) map[int]bool {
	state := map[string]string{"tcp": "0A", "udp": "07"}[protocol]
	open := map[int]bool{}
	for _, file := range []string{protocol, protocol + "6"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + file)
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(text), "\n") {
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != state {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if port, err := strconv.ParseUint(hex, 16, 16); err == nil {
				open[int(port)] = true
			}
		}
	}
	return open
}

// probe does what the kubelet would, from the node to the pod's address, once.
func (c *container) probe(probe *corev1.Probe) error {
	ips := c.p.observed().IPs
	if len(ips) == 0 {
		return errors.New("has no address")
	}
	timeout := time.Duration(max(1, probe.TimeoutSeconds)) * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if probe.TCPSocket != nil {
		conn, err := c.p.node.dial(ctx, netip.AddrPortFrom(ips[0], c.port(probe.TCPSocket.Port.IntVal, probe.TCPSocket.Port.StrVal)))
		if err != nil {
			return fmt.Errorf("readinessProbe: %w", err)
		}
		return conn.Close()
	}
	to := netip.AddrPortFrom(ips[0], c.port(probe.HTTPGet.Port.IntVal, probe.HTTPGet.Port.StrVal))
	return c.p.node.httpGet(ctx, to, probe.HTTPGet.Path)
}

func (c *container) port(number int32, name string) uint16 {
	for _, p := range c.spec.Ports {
		if name != "" && p.Name == name {
			return uint16(p.ContainerPort)
		}
	}
	return uint16(number)
}

// dial connects from the node.
func (n *node) dial(ctx context.Context, to netip.AddrPort) (conn net.Conn, err error) {
	err = n.space.run(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}

func (n *node) httpGet(ctx context.Context, to netip.AddrPort, path string) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return n.dial(ctx, to) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+"/"+strings.TrimPrefix(path, "/"), nil)
	if err != nil {
		return fmt.Errorf("readinessProbe: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("readinessProbe: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("readinessProbe: %s: %s", path, resp.Status)
	}
	return nil
}
