package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// pluginName is the CNI plugin's type. The lab's own program answers as the
// plugin when CNI_COMMAND is set.
const pluginName = "podlane-cni"

// runtimeOf gives what a container runtime uses to call the plugin on a node.
// The plugin is started in the node's network namespace.
func (h *holder) runtimeOf(n *node) (*libcni.CNIConfig, *libcni.NetworkConfigList, error) {
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "podlane",
		"plugins": []any{map[string]any{"type": pluginName, "socket": n.agentSocket()}},
	})
	if err != nil {
		return nil, nil, err
	}
	list, err := libcni.ConfListFromBytes(conf)
	if err != nil {
		return nil, nil, err
	}
	plugins := []string{filepath.Join(h.dir, "bin")}
	return libcni.NewCNIConfigWithCacheDir(plugins, filepath.Join(n.dir, "cni-cache"), &pluginExec{h: h, node: n}), list, nil
}

func (p *pod) runtimeConf() *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.sandbox, NetNS: p.space.path, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.want.Namespace}, {"K8S_POD_NAME", p.want.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.sandbox}, {"K8S_POD_UID", string(p.want.UID)}},
	}
}

// addToNetwork calls ADD and gives the pod's addresses.
func (p *pod) addToNetwork(ctx context.Context) ([]netip.Addr, error) {
	runtime, list, err := p.h.runtimeOf(p.node)
	if err != nil {
		return nil, err
	}
	result, err := runtime.AddNetworkList(ctx, list, p.runtimeConf())
	if err != nil {
		return nil, err
	}
	now, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, ip := range now.IPs {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, fmt.Errorf("CNI ADD gave the address %v", ip.Address)
		}
		addrs = append(addrs, a.Unmap())
	}
	if len(addrs) == 0 {
		return nil, fmt.Errorf("CNI ADD gave no address")
	}
	return addrs, nil
}

func (p *pod) removeFromNetwork(ctx context.Context) error {
	runtime, list, err := p.h.runtimeOf(p.node)
	if err != nil {
		return err
	}
	return runtime.DelNetworkList(ctx, list, p.runtimeConf())
}

// pluginExec starts plugins for libcni as children that the holder's reaper
// knows.
type pluginExec struct {
	version.PluginDecoder
	h    *holder
	node *node
}

func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

// ExecPlugin is the contract of CNI: the configuration on standard input, the
// result or an error as JSON on standard output.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	in, inW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, outW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p, err := e.h.procs.start(e.node.space, func() (*exec.Cmd, error) {
		cmd := exec.Command(path)
		cmd.Env, cmd.Dir = environ, "/"
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, outW, os.Stderr
		return cmd, nil
	})
	_, _ = in.Close(), outW.Close()
	if err != nil {
		_ = inW.Close()
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { p.signal(9) })()
	go func() {
		_, _ = inW.Write(stdin)
		_ = inW.Close()
	}()
	answer, err := io.ReadAll(out)
	<-p.done
	if err == nil && p.code() != 0 {
		err = pluginError(answer, p.code())
	}
	return answer, err
}

func pluginError(answer []byte, code int) error {
	var e struct {
		Code         int
		Msg, Details string
	}
	if json.Unmarshal(bytes.TrimSpace(answer), &e) != nil || e.Msg == "" {
		return fmt.Errorf("%s: exit status %d: %q", pluginName, code, answer)
	}
	if e.Details != "" {
		e.Msg += ": " + e.Details
	}
	return fmt.Errorf("%s (CNI code %d)", e.Msg, e.Code)
}
