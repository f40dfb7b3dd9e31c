package machines

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is a machine of the cluster: a process that holds its network, mount and
// host name namespaces, and in them containerd and a kubelet. All paths are those
// of a real machine; what is under them is the node's own.
type Node struct {
	Name       string
	IP4, IP6   string
	PID        int
	dir        string
	life       io.Closer // its end is the node's
	containerd *Process
	kubelet    *Process
	procs      string // of the cgroup2 that the runtime and its pods are in; "" for this program's
}

// own are the folders of which each node has its own: what the machine has in them
// is seen, what the node writes is not on the machine.
var own = []string{"/etc", "/opt", "/var/lib", "/var/log"}

// folder is the variable with the folder of a node's files.
const folder = "PODLANE_E2E_NODE_DIR"

// node is the process that holds a node's namespaces, until its standard input
// ends.
func node() error {
	dir := os.Getenv(folder)
	if err := private(); err != nil {
		return err
	}
	for _, path := range own {
		if err := layer(filepath.Join(dir, "over", strings.ReplaceAll(path, "/", "-")), path); err != nil {
			return fmt.Errorf("own %s: %w", path, err)
		}
	}
	err := errors.Join(unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"), unix.Sethostname([]byte(filepath.Base(dir))),
		// Volumes' mounts must reach the containers that share them.
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
	for _, d := range []string{"/etc/kubernetes", "/run/lock", "/run/netns"} {
		err = errors.Join(err, os.MkdirAll(d, 0o755))
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// layer lays a folder for changes over one of the machine's.
func layer(changes, path string) error {
	upper, work := filepath.Join(changes, "upper"), filepath.Join(changes, "work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return err
	}
	return unix.Mount("overlay", path, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", path, upper, work))
}

// newNode makes the namespaces of node number i and joins them to the bridge.
func newNode(ctx context.Context, dir string, i int) (*Node, error) {
	name := "n" + strconv.Itoa(i)
	n := &Node{Name: name, IP4: fmt.Sprintf("192.168.77.%d", 10+i), IP6: fmt.Sprintf("fd77::%d", 10+i), dir: filepath.Join(dir, name)}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return nil, err
	}
	cmd := again("node", unix.CLONE_NEWNS|unix.CLONE_NEWNET|unix.CLONE_NEWUTS|unix.CLONE_NEWIPC)
	cmd.Env = append(cmd.Env, folder+"="+n.dir)
	cmd.SysProcAttr.Pdeathsig, cmd.SysProcAttr.Setpgid = 0, true
	cmd.Stdin, cmd.Stdout = nil, nil
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	n.life = in
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("node %s: %w", name, err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		return nil, fmt.Errorf("node %s: its namespaces are not ready: %w", name, errors.Join(err, cmd.Wait()))
	}
	n.PID = cmd.Process.Pid
	return n, n.plug(ctx)
}

// plug gives the node its link to the others.
func (n *Node) plug(ctx context.Context) error {
	_, err := sh(ctx, "ip", "link", "add", n.Name, "up", "master", bridge, "type", "veth", "peer", "name", "eth0", "netns", "/proc/"+strconv.Itoa(n.PID)+"/ns/net")
	for _, args := range []string{
		"link set lo up", "addr add " + n.IP4 + "/24 dev eth0", "-6 addr add " + n.IP6 + "/64 dev eth0 nodad", "link set eth0 up",
		"route add default via " + outside4, "-6 route add default via " + outside6,
	} {
		if err == nil {
			_, err = n.Run(ctx, append([]string{"ip"}, strings.Fields(args)...)...)
		}
	}
	return err
}

// within gives a command that runs in the node. /sys stays the machine's, for its
// cgroups.
func (n *Node) within(command ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(n.PID), "-m", "-n", "-u", "-i", "--"}, command...)
}

// Run runs a program on the node and gives its output.
func (n *Node) Run(ctx context.Context, command ...string) (string, error) {
	in := n.within(command...)
	return sh(ctx, in[0], in[1:]...)
}

// InPod starts a verb of the pods' program in the network of a pod's container,
// which needs no API server.
func (n *Node) InPod(ctx context.Context, container string, args ...string) (*Process, error) {
	tasks, err := n.Run(ctx, "ctr", "-n", "k8s.io", "tasks", "ls")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(tasks) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == container {
			command := append([]string{"nsenter", "-t", f[1], "-n", "--", filepath.Join(filepath.Dir(n.dir), "pod")}, args...)
			return start(n.dir, "in-"+container[:8]+"-"+args[0], n.within(command...))
		}
	}
	return nil, fmt.Errorf("node %s has no container %s: %s", n.Name, container, tasks)
}

// File gives the path of a file of the node as this program sees it.
func (n *Node) File(path string) string {
	return filepath.Join("/proc", strconv.Itoa(n.PID), "root", path)
}

const containerdConfig = `version = 2
root = %q
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = %q
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/opt/cni/bin"
  conf_dir = "/etc/cni/net.d"
`

// startContainerd starts it, and gives it the images.
func (n *Node) startContainerd(ctx context.Context, images []string) (err error) {
	config := filepath.Join(n.dir, "containerd.toml")
	text := fmt.Sprintf(containerdConfig, filepath.Join(n.dir, "containerd"), PodImage)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	command := []string{"containerd", "--config", config}
	if n.procs != "" {
		command = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, n.procs}, command...)
	}
	if n.containerd, err = start(n.dir, "containerd", n.within(command...)); err != nil {
		return err
	}
	err = n.containerd.await(ctx, func(ctx context.Context) error {
		_, err := n.Run(ctx, "ctr", "--connect-timeout", "1s", "version")
		return err
	})
	for _, image := range images {
		if err == nil {
			_, err = n.Run(ctx, "ctr", "-n", "k8s.io", "images", "import", image)
		}
	}
	return err
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
failCgroupV1: false
cgroupRoot: /%s
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
clusterDNS: [%s]
clusterDomain: cluster.local
resolvConf: ""
evictionHard: {}
localStorageCapacityIsolation: false
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
nodeStatusUpdateFrequency: 4s
syncFrequency: 10s
`

func (n *Node) startKubelet(p *plane) (err error) {
	cgroup := os.Getenv(group) + "/" + n.Name
	if err := makeCgroups(cgroup); err != nil {
		return fmt.Errorf("cgroups of %s: %w", n.Name, err)
	}
	config := filepath.Join(n.dir, "kubelet.yaml")
	text := fmt.Sprintf(kubeletConfig, cgroup, DNS, p.path("ca.crt"))
	err = errors.Join(os.WriteFile(config, []byte(text), 0o600),
		os.WriteFile(n.File("/etc/kubernetes/kubelet.conf"), p.kubeconfig("kubelet-"+n.Name), 0o600))
	if err != nil {
		return err
	}
	n.kubelet, err = start(n.dir, "kubelet", n.within(filepath.Join(p.bin, "kubelet"), "--config", config,
		"--kubeconfig", "/etc/kubernetes/kubelet.conf", "--hostname-override", n.Name, "--node-ip", n.IP4+","+n.IP6))
	return err
}
