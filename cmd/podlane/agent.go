package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/agent/ports"
	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/apiserver"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/internal/memory"
	"github.com/podlane/podlane/internal/repeat"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/takeover"
)

type agentFlags struct {
	node, manifests, kubeconfig string
	overlayFlags
	mtu                                      string
	runDir, stateDir                         string
	logLevel, logFormat                      string
	check                                    bool
	serviceProxy, health, metrics            string
	backend, iptablesRoot                    string
	nodePortAddresses, counted               []string
	externalIPs, masqueradeAll               bool
	dnsService                               string
	fastPath, bpfDir, socketLB, cgroup, view string
	install                                  installFlags
}

func newAgent() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a node's agent: make this node's kernel match the cluster",
		Long: `Run a node's agent. It follows the cluster (a kube-apiserver, or a folder of YAML) and keeps this node's links, routes, neighbours and nftables
tables as the cluster wants them; it wires pods for the CNI plugin. It needs CAP_NET_ADMIN in the node's network namespace.

It changes nothing before it knows the whole cluster, and leaves everything as it is when it stops: the kernel goes on forwarding.`,
		Example: `  podlane agent --kubeconfig /etc/podlane/kubeconfig
  podlane agent --node n1 --manifests ./cluster --overlay vxlan
  podlane agent --check --manifests ./cluster`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runAgent(cmd, f) },
	}
	host, _ := os.Hostname()
	fl := cmd.Flags()
	fl.StringVar(&f.node, "node", host, "this node's name in the cluster")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of the API server; without it and --manifests: in-cluster")
	fl.StringVar(&f.manifests, "manifests", "", "follow a folder or file of Kubernetes YAML instead of an API server")
	f.overlayFlags.add(fl, "")
	fl.StringVar(&f.mtu, "mtu", "auto", "MTU of new pods: auto (what is left inside VXLAN, but for --overlay direct), max (the link's, where no peer is behind VXLAN)")
	fl.StringVar(&f.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	fl.StringVar(&f.stateDir, "state-dir", "/var/lib/podlane", "folder of the allocation record")
	fl.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn, error")
	fl.StringVar(&f.logFormat, "log-format", "text", "text, json")
	fl.BoolVar(&f.check, "check", false, "check the flags and the source, then exit")
	fl.StringVar(&f.serviceProxy, "service-proxy", string(takeover.Auto), "serve the node's Services: auto (unless kube-proxy does), on, off")
	fl.StringVar(&f.fastPath, "fast-path", string(fastpath.Default), "packets between pods past routing and netfilter, by tc eBPF: auto (where the kernel can), on, off")
	fl.StringVar(&f.bpfDir, "bpf-dir", bpfDir(), "folder of a BPF file system for the fast path and --socket-lb, this node's own")
	fl.StringVar(&f.socketLB, "socket-lb", string(agent.DefaultSocketLB), "TCP connections of pods to cluster IPs go to an endpoint from the start, by cgroup eBPF: auto (where the kernel can), on, off")
	fl.StringVar(&f.cgroup, "cgroup", "/sys/fs/cgroup", "for --socket-lb: the machine's cgroup file system, or the cgroup of this node's pods")
	fl.StringVar(&f.backend, "proxy-backend", string(agent.AutoBackend), "how Services are brought to the kernel: auto (nftables, where the kernel can), nftables, iptables (by the host's programs)")
	fl.StringVar(&f.iptablesRoot, "iptables-root", "", "where the host's files are, in a container, to run its iptables; \"\" is /")
	fl.StringSliceVar(&f.nodePortAddresses, "nodeport-addresses", []string{"primary"}, "the node's addresses that answer to NodePorts: primary (its InternalIPs), or CIDRs; of a family without one all do")
	fl.StringVar(&f.dnsService, "dns-service", "kube-system/kube-dns", "the Service of the cluster's DNS: a server of it on this node that hangs gets no queries; \"\" is none")
	fl.BoolVar(&f.externalIPs, "external-ips", true, "serve the externalIPs of Services")
	fl.BoolVar(&f.masqueradeAll, "masquerade-all", false, "replace the source address of all connections to cluster IPs, those of the node's own pods too")
	fl.StringSliceVar(&f.counted, "count-endpoints", nil, "Services, NAMESPACE/NAME, whose endpoints are counted each, as with the annotation podlane.dev/count-endpoints")
	fl.StringVar(&f.health, "healthz-bind-address", ports.Defaults.Health, "address of /healthz and /livez; \"\" is none")
	fl.StringVar(&f.metrics, "metrics-bind-address", ports.Defaults.Metrics, "address of /metrics, /proxyMode and /configz; \"\" is none")
	fl.StringVar(&f.view, "view-bind-address", "", "loopback address of a page that shows the cluster, what flows by this node, and explains what is clicked; \"\" is none")
	f.install.add(fl)
	cmd.MarkFlagsMutuallyExclusive("kubeconfig", "manifests")
	return cmd
}

func runAgent(cmd *cobra.Command, f agentFlags) error {
	log, level, err := newLeveledLogger(cmd.ErrOrStderr(), f.logLevel, f.logFormat)
	if err != nil {
		return err
	}
	if f.install.cleanup {
		return f.cleanUp(cmd, log)
	}
	memory.Frugal()
	o, err := f.overlay()
	if err != nil {
		return err
	}
	if f.node == "" {
		return errors.New("agent: --node is empty: give the node's name in the cluster")
	}
	operations, err := f.operations(cmd)
	if err != nil {
		return err
	}
	fast, err := fastpath.ParseMode(f.fastPath)
	if err != nil {
		return fmt.Errorf("--fast-path: %w", err)
	}
	dns, err := parseService(f.dnsService)
	if err != nil {
		return fmt.Errorf("--dns-service: %w", err)
	}
	sockets, err := agent.ParseSocketLB(f.socketLB)
	if err != nil {
		return err
	}
	leave, err := f.install.egress()
	if err != nil {
		return err
	}
	ask, err := f.clients(log)
	if err != nil {
		return err
	}
	if err := agent.CheckView(f.view); err != nil {
		return fmt.Errorf("--view-bind-address: %w", err)
	}
	operations.Warn = ask.warn
	if f.check {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "ok")
		return err
	}
	if o.Mode != overlay.Direct && !leave.On && len(leave.Exclude) == 0 {
		log.Warn("pods keep their addresses out of the cluster, and --masquerade-exclude names no network that has routes to them: what comes from there through another node in VXLAN is dropped")
	}
	c := agent.Config{
		Node: f.node, Overlay: o, RunDir: f.runDir, StateDir: f.stateDir, Log: log, LogLevel: level, Operations: operations,
		DNS: dns, Egress: leave, Policies: ask.policies, Events: f.install.events, Warner: ask.warner, View: f.view, FastPath: agent.FastPath{Mode: fast, Dir: f.bpfDir},
		SocketLB: agent.SocketLB{Mode: sockets, Dir: f.bpfDir, Cgroup: f.cgroup}, ProcSys: f.install.procSys, Runtime: f.runtime(log), Reporter: ask.reporter, Servers: ask.servers, Probes: f.install.probes,
	}
	return agent.Run(cmd.Context(), c, ask.source)
}

// clients are what asks the API server, or a folder, and writes to the former.
type clients struct {
	servers  *apiserver.Servers // nil with a folder
	source   agent.Source
	policies agent.Policies
	reporter *kube.Reporter
	warner   agent.Warner
	warn     func(service cluster.Key, reason, message string)
}

func (f agentFlags) clients(log *slog.Logger) (c clients, err error) {
	api, err := f.api(log)
	if err != nil {
		return c, err
	}
	if api != nil {
		c.servers = api.Servers
	}
	var errs [5]error
	c.source, errs[0] = f.source(api, log)
	c.policies, errs[1] = f.policies(api)
	c.reporter, errs[2] = f.reporter(api)
	c.warner, errs[3] = f.warner(api)
	c.warn, errs[4] = f.warnService(api)
	return c, errors.Join(errs[:]...)
}

// operations reads the settings of the service proxy.
func (f agentFlags) operations(cmd *cobra.Command) (agent.Operations, error) {
	mode, err := takeover.ParseMode(f.serviceProxy)
	if err != nil {
		return agent.Operations{}, err
	}
	backend, err := agent.ParseBackend(f.backend)
	if err != nil {
		return agent.Operations{}, err
	}
	addresses, err := proxy.ParseNodePortAddresses(f.nodePortAddresses)
	if err != nil {
		return agent.Operations{}, fmt.Errorf("--nodeport-addresses: %w", err)
	}
	counted, err := proxy.ParseCounted(f.counted)
	if err != nil {
		return agent.Operations{}, fmt.Errorf("--count-endpoints: %w", err)
	}
	config := map[string]string{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) { config[f.Name] = f.Value.String() })
	return agent.Operations{Mode: mode, Backend: backend, IPTablesRoot: f.iptablesRoot,
		Proxy: proxy.Config{NodePortAddresses: addresses, NoExternalIPs: !f.externalIPs, MasqueradeAll: f.masqueradeAll, Counted: counted}, Ports: ports.Addresses{Health: f.health, Metrics: f.metrics},
		Config: map[string]any{"podlane": config}}, nil
}

// parseService reads NAMESPACE/NAME; "" is none.
func parseService(text string) (cluster.Key, error) {
	ns, name, ok := strings.Cut(text, "/")
	if text != "" && (!ok || ns == "" || name == "" || strings.Contains(name, "/")) {
		return cluster.Key{}, fmt.Errorf("%q: want NAMESPACE/NAME", text)
	}
	return cluster.Key{Namespace: ns, Name: name}, nil
}

// source makes the source that the flags ask for.
func (f agentFlags) source(api *kube.Options, log *slog.Logger) (agent.Source, error) {
	if api == nil {
		return file.New(f.manifests, file.Options{Node: f.node, Log: log})
	}
	return kube.New(*api)
}

func (f agentFlags) overlay() (overlay.Config, error) {
	o, err := f.overlayFlags.config()
	if err == nil && f.mtu != "auto" && f.mtu != "max" {
		err = fmt.Errorf("--mtu %q: want auto or max", f.mtu)
	}
	o.LargeMTU = f.mtu == "max"
	return o, err
}

// newLogger makes the logger of a long-running verb.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	log, _, err := newLeveledLogger(w, level, format)
	return log, err
}

// newLeveledLogger makes one whose level can be changed.
func newLeveledLogger(w io.Writer, level, format string) (*slog.Logger, *slog.LevelVar, error) {
	l := &slog.LevelVar{}
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(repeat.New(slog.NewTextHandler(w, o))), l, nil
	case "json":
		return slog.New(repeat.New(slog.NewJSONHandler(w, o))), l, nil
	}
	return nil, nil, fmt.Errorf("--log-format %q: want text or json", format)
}
