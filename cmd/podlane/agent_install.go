package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/egress"
	"github.com/podlane/podlane/install"
)

// installFlags are those of an agent that is installed on a node of a cluster.
type installFlags struct {
	server            string
	kubeletConfigs    []string
	binDir, confDir   string
	socket, procSys   string
	probes            string
	masquerade        bool
	policies, events  bool
	exclude           string
	cleanup, thenWait bool
}

func (i *installFlags) add(fl *pflag.FlagSet) {
	fl.StringVar(&i.server, "api-server", "", "the API server's real address, https://HOST:PORT; without it the kubelet's, then the Service if it answers")
	fl.StringSliceVar(&i.kubeletConfigs, "kubelet-kubeconfig", install.KubeletConfigs, "where the kubelet's kubeconfig may be; nothing but its server is read")
	fl.StringVar(&i.binDir, "cni-bin-dir", "/opt/cni/bin", "the container runtime's folder of CNI plugins")
	fl.StringVar(&i.confDir, "cni-conf-dir", "", "the container runtime's folder of CNI configurations; \"\": the plugin is not installed")
	fl.StringVar(&i.socket, "cni-socket", "", "the agent's socket as the container runtime sees it (default agent.sock in --run-dir)")
	fl.StringVar(&i.procSys, "proc-sys", "", "where /proc/sys of the node can be written (default /proc/sys)")
	fl.StringVar(&i.probes, "probe-bind-address", "", "address of /healthz and /readyz for the kubelet's probes; \"\" is none")
	fl.BoolVar(&i.masquerade, "masquerade", false, "give what pods send out of the cluster the node's address")
	fl.StringVar(&i.exclude, "masquerade-exclude", "", "destinations that have routes to pods: CIDR,CIDR")
	fl.BoolVar(&i.policies, "warn-networkpolicies", false, "say in status and metrics which NetworkPolicies there are, since none is enforced")
	fl.BoolVar(&i.events, "events", false, "warn by Events: on each NetworkPolicy with --warn-networkpolicies, and on this Node of what podlane doctor would find")
	fl.BoolVar(&i.cleanup, "cleanup", false, "remove all that is Podlane's from this node, restore former sysctls, and exit")
	fl.BoolVar(&i.thenWait, "then-wait", false, "with --cleanup: wait for a signal before the exit, as a DaemonSet wants it")
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

// policies follows NetworkPolicies where that is wanted.
func (f agentFlags) policies(server string, log *slog.Logger) (agent.Policies, error) {
	if !f.install.policies || f.manifests != "" {
		return nil, nil
	}
	p, err := kube.NewPolicies(kube.Options{Kubeconfig: f.kubeconfig, Server: server, Log: log})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// warner writes Events where that is wanted, and there is an API server.
func (f agentFlags) warner(server string) (agent.Warner, error) {
	if !f.install.events || f.manifests != "" {
		return nil, nil
	}
	e, err := kube.NewNodeEvents(kube.Options{Kubeconfig: f.kubeconfig, Server: server, Node: f.node})
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (f agentFlags) runtime(log *slog.Logger) install.Runtime {
	socket := f.install.socket
	if socket == "" {
		socket = filepath.Join(f.runDir, "agent.sock")
	}
	return install.Runtime{BinDir: f.install.binDir, ConfDir: f.install.confDir, Socket: socket, Log: log}
}

func (f agentFlags) cleanUp(cmd *cobra.Command, log *slog.Logger) error {
	err := install.Cleanup(install.Traces{
		Runtime: f.runtime(log), RunDir: f.runDir, StateDir: f.stateDir, ProcSys: f.install.procSys, FlowLimits: agent.FlowLimits, BPFDir: f.bpfDir,
	}, log)
	if err != nil {
		return fmt.Errorf("cleanup: %w", err)
	}
	if f.install.thenWait {
		<-cmd.Context().Done()
	}
	return nil
}
