package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Kubernetes is the version of kube-proxy that go.mod names.
const Kubernetes = "v1.36.3"

// Programs are the built proxies.
type Programs struct{ Podlane, KubeProxy string }

// Build builds both from this tree and go.mod. The first time it takes a minute
// or two; then the Go build cache has them.
func Build(ctx context.Context, w io.Writer) (Programs, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return Programs{}, err
	}
	dir := filepath.Join(cache, "podlane", "kubeproxy-"+Kubernetes)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Programs{}, err
	}
	p := Programs{Podlane: filepath.Join(dir, "podlane"), KubeProxy: filepath.Join(dir, "kube-proxy")}
	root, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/podlane/podlane").Output()
	if err != nil {
		return Programs{}, fmt.Errorf("go list: %w", err)
	}
	if err := build(ctx, w, strings.TrimSpace(string(root)), p.Podlane, "./cmd/podlane", ""); err != nil {
		return Programs{}, err
	}
	version := "-X k8s.io/component-base/version."
	return p, build(ctx, w, "", p.KubeProxy, "k8s.io/kubernetes/cmd/kube-proxy",
		version+"gitVersion="+Kubernetes+" "+version+"gitMajor=1 "+version+"gitMinor=36")
}

func build(ctx context.Context, w io.Writer, dir, to, pkg, flags string) error {
	fmt.Fprintln(w, "building", pkg)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w "+flags, "-o", to, pkg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return nil
}

// Agent starts Podlane's agent, with more arguments.
func (n *Node) Agent(p Programs, more ...string) (*Process, error) {
	args := append([]string{"agent", "--node", Name, "--kubeconfig", n.kubeconfig, "--run-dir", n.RunDir(),
		"--state-dir", filepath.Join(n.dir, "state"), "--overlay", "direct"}, more...)
	return n.Start(p.Podlane, args...)
}

// RunDir is the folder of the agent's socket, Kubeconfig the way to the API.
func (n *Node) RunDir() string     { return filepath.Join(n.dir, "run") }
func (n *Node) Kubeconfig() string { return n.kubeconfig }

// KubeProxy starts kube-proxy in a mode, with its defaults, but for conntrack's
// limits, which are the machine's.
func (n *Node) KubeProxy(p Programs, mode string) (*Process, error) {
	path := filepath.Join(n.dir, "kube-proxy.yaml")
	text := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
hostnameOverride: %s
clusterCIDR: 10.244.0.0/16
clientConnection: {kubeconfig: %q}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, mode, Name, n.kubeconfig)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return n.Start(p.KubeProxy, "--config", path, "--v", "2")
}

// Synced gives when the process logged that it has read all Services and
// EndpointSlices.
func (p *Process) Synced() (last time.Time, err error) {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return time.Time{}, err
	}
	for line := range strings.Lines(string(data)) {
		var at time.Time
		switch {
		case strings.Contains(line, `msg="all lists are read"`): // Podlane
			stamp, _, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
			at, err = time.Parse(time.RFC3339Nano, stamp)
		case strings.Contains(line, `"Caches are synced" controller="service config"`), strings.Contains(line, `"Caches are synced" controller="endpoint slice config"`):
			at, err = klogTime(line)
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("log line %q: %w", line, err)
		}
		if at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("%s does not say when its informers were synced", p.Log)
	}
	return last, nil
}

// klogTime reads "I1128 11:33:03.123456", which has no year.
func klogTime(line string) (time.Time, error) {
	const form = "0102 15:04:05.000000"
	if len(line) < 1+len(form) {
		return time.Time{}, errors.New("too short")
	}
	now := time.Now()
	at, err := time.ParseInLocation("2006"+form, strconv.Itoa(now.Year())+line[1:1+len(form)], time.Local)
	if at.After(now.Add(time.Hour)) { // of last year
		at = at.AddDate(-1, 0, 0)
	}
	return at, err
}

// Get asks a page of a server on the node's loopback.
func (n *Node) Get(url string) (string, error) {
	var text []byte
	err := n.Do(func() error {
		conn, err := net.DialTimeout("tcp", url[len("http://"):][:len("127.0.0.1:10249")], time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
		r, err := client.Get(url)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		text, err = io.ReadAll(r.Body)
		return err
	})
	return string(text), err
}
