package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/apiserver"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/install"
)

// installFlags are those of an agent that is installed on a node of a cluster.
type installFlags struct {
	server           string
	kubeletConfigs   []string
	binDir, confDir  string
	socket, procSys  string
	probes           string
	masquerade       bool
	policies, events bool
	exclude          string
	cleanup          bool
}

func (i *installFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&i.server, "api-server", "", "the API server's real address, https://HOST:PORT; without it the kubelet's, then the Service if it answers")
	fl.StringSliceVar(&i.kubeletConfigs, "kubelet-kubeconfig", install.KubeletConfigs, "where the kubelet's kubeconfig may be; nothing but its server is read; --cleanup removes an empty folder of that name")
	fl.StringVar(&i.binDir, "cni-bin-dir", "/opt/cni/bin", "the container runtime's folder of CNI plugins")
	fl.StringVar(&i.confDir, "cni-conf-dir", "", "the container runtime's folder of CNI configurations; \"\": the plugin is not installed; with --cleanup the default is "+usualConfDir)
	fl.StringVar(&i.socket, "cni-socket", "", "the agent's socket as the container runtime sees it (default agent.sock in --run-dir)")
	fl.StringVar(&i.procSys, "proc-sys", "", "where /proc/sys of the node can be written (default /proc/sys)")
	fl.StringVar(&i.probes, "probe-bind-address", "", "address of /healthz and /readyz for the kubelet's probes; \"\" is none")
	fl.BoolVar(&i.masquerade, "masquerade", false, "give what pods send out of the cluster the node's address")
	fl.StringVar(&i.exclude, "masquerade-exclude", "", "destinations that have routes to pods: CIDR,CIDR")
	fl.BoolVar(&i.policies, "warn-networkpolicies", false, "say in status and metrics which NetworkPolicies there are, since none is enforced")
	fl.BoolVar(&i.events, "events", false, "write to the API what an operator must know: the node's condition NetworkUnavailable, Events on the node (also of what podlane doctor would find), on Services whose healthCheckNodePort cannot be opened, and with --warn-networkpolicies on each of those")
	fl.BoolVar(&i.cleanup, "cleanup", false, "remove all that is Podlane's from this node, restore former sysctls, and exit")
}

// egress reads what leaves the cluster with which address.
func (i installFlags) egress() (egress.Config, error) {
	c := egress.Config{On: i.masquerade}
	for _, text := range strings.FieldsFunc(i.exclude, func(r rune) bool { return r == ',' || r == ' ' }) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return c, fmt.Errorf("--masquerade-exclude %q: want CIDR,CIDR: %w", text, err)
		}
		c.Exclude = append(c.Exclude, p)
	}
	return c, nil
}

// server finds the API server for an agent that has the service account of its pod
// alone.
func (f agentFlags) server() (install.Server, error) {
	if f.manifests != "" {
		return install.Server{}, nil
	}
	if f.kubeconfig != "" {
		return install.Server{URL: f.install.server, Why: "the setting"}, nil
	}
	s, err := install.FindServer(f.install.server, f.install.kubeletConfigs)
	if err != nil {
		return s, fmt.Errorf("agent: %w", err)
	}
	return s, nil
}

// api gives how the API server is asked: none with a folder.
func (f agentFlags) api(log *slog.Logger) (*kube.Options, error) {
	if f.manifests != "" {
		return nil, nil
	}
	server, err := f.server()
	if err != nil {
		return nil, err
	}
	o := &kube.Options{Kubeconfig: f.kubeconfig, Server: server.URL, Node: f.node, Kinds: kube.ForAgent, Log: log}
	first := server.URL
	if first == "" {
		if first, err = install.ServerOf(f.kubeconfig); err != nil {
			return o, nil // one without TLS has no others
		}
		server.Why = "the kubeconfig"
	}
	u, err := url.Parse(first)
	if err != nil {
		return nil, fmt.Errorf("API server %q: %w", first, err)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	o.Servers, err = apiserver.New(host, server.Why, f.stateDir, log)
	if err != nil {
		log.Warn("others than the first are learned anew", "err", err)
	}
	return o, nil
}

// policies follows NetworkPolicies where that is wanted.
func (f agentFlags) policies(o *kube.Options) (agent.Policies, error) {
	if !f.install.policies || o == nil {
		return nil, nil
	}
	p, err := kube.NewPolicies(*o)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// warner writes Events where that is wanted, and there is an API server.
func (f agentFlags) warner(o *kube.Options) (agent.Warner, error) {
	if !f.install.events || o == nil {
		return nil, nil
	}
	e, err := kube.NewNodeEvents(*o)
	if err != nil {
		return nil, err
	}
	return e, nil
}

// reporter writes the node's condition and Events where that is wanted.
func (f agentFlags) reporter(o *kube.Options) (*kube.Reporter, error) {
	if !f.install.events || o == nil {
		return nil, nil
	}
	return kube.NewReporter(*o)
}

// warnService gives what writes Events on Services, where that is wanted.
func (f agentFlags) warnService(o *kube.Options) (func(cluster.Key, string, string), error) {
	if !f.install.events || o == nil {
		return nil, nil
	}
	e, err := kube.NewServiceEvents(*o)
	if err != nil {
		return nil, err
	}
	return e.WarnService, nil
}

func (f agentFlags) runtime(log *slog.Logger) install.Runtime {
	socket := f.install.socket
	if socket == "" {
		socket = filepath.Join(f.runDir, "agent.sock")
	}
	return install.Runtime{BinDir: f.install.binDir, ConfDir: f.install.confDir, Socket: socket, Log: log}
}

// usualConfDir is where a container runtime has its CNI configurations, unless it is
// told otherwise.
const usualConfDir = "/etc/cni/net.d"

// traces are the places that a cleanup looks at. An agent installs nothing without
// --cni-conf-dir; a cleanup by hand is meant for what one with it has installed.
func (f agentFlags) traces(cmd *cobra.Command, log *slog.Logger) install.Traces {
	r := f.runtime(log)
	if !cmd.Flags().Changed("cni-conf-dir") {
		r.ConfDir = usualConfDir
	}
	return install.Traces{Runtime: r, RunDir: f.runDir, StateDir: f.stateDir, ProcSys: f.install.procSys, FlowLimits: agent.FlowLimits, BPFDir: f.bpfDir,
		KubeletConfigs: f.install.kubeletConfigs, Chains: func() error { return agent.RemoveChains(f.stateDir, f.iptablesRoot, log) }}
}

func (f agentFlags) cleanUp(cmd *cobra.Command, log *slog.Logger) error {
	if err := install.Cleanup(cmd.Context(), f.traces(cmd, log), log); err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	return nil
}
