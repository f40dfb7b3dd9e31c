package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

func newLab() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "A Kubernetes cluster network on this machine: nodes and pods are network namespaces",
		Long: `A lab is a small cluster network on this machine, without root: each node is a network namespace with an agent of its own, each pod one that
the CNI plugin wires, each container a process. Images are never pulled: a container's command is looked for on this machine, and a container
without one gets a stand-in that is chosen by its image's name and its ports:

  nginx, httpd, caddy, whoami, agnhost ...   HTTP on its TCP ports and an answer on its UDP ports, with the pod's name and the client's address
  busybox, alpine, curl, netshoot, pause ... waits; args, if any, are run as a command
  qperf                                      podlane perf server
  podlane/dns                                podlane dns
  any other                                  as nginx where it has ports, else it waits

Nothing of the machine's own network is touched, and nothing stays after "podlane lab down".`,
		Example: `  podlane lab up -f examples/nginx.yaml
  podlane lab exec curl -- curl -s nginx-service:8000
  podlane lab exec node/n1 -- ip route
  podlane lab down`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	name := cmd.PersistentFlags().String("name", lab.DefaultName, "the lab's name: labs of different names run side by side")
	cmd.AddCommand(newLabUp(name), newLabStatus(name), newLabExec(name), newLabApply(name), newLabDelete(name),
		newLabAgents(name), newLabLogs(name), newLabDown(name), newLabDemo(name), newLabPerf(name), newLabHold(), newLabStandIn(), newLabClient())
	return cmd
}

func newLabUp(name *string) *cobra.Command {
	var opts lab.Options
	var files []string
	var kubernetes bool
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab in the background, and wait until all in it is Ready",
		Long: `Start a lab in the background, and wait until all in it is Ready.

With --kubernetes it is a real Kubernetes instead: etcd, kube-apiserver, controller manager, scheduler, and nodes with containerd and kubelet, each in
namespaces of its own, with Podlane installed from deploy/podlane.yaml. It needs root, Go and a checkout of Podlane's sources as the working folder;
containerd and runc are installed by apt-get where they are missing. Kubernetes is built from its Go modules the first time, which takes 10 to 20
minutes. It says how to get a shell with kubectl, runs until Ctrl-C, and leaves nothing behind.`,
		Example: `  podlane lab up
  podlane lab up --nodes 3 --overlay vxlan --ip-family ipv6 -f manifests/
  podlane lab up --name other -f - < cluster.yaml
  sudo -E podlane lab up --kubernetes --nodes 3`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if kubernetes {
				return runKubernetes(cmd, opts.Nodes)
			}
			objects, unread, err := readManifests(cmd, files)
			if err != nil {
				return err
			}
			opts.Name, opts.Objects, opts.Progress = *name, objects, progress(cmd.ErrOrStderr())
			client, err := lab.Up(cmd.Context(), opts)
			return reportUp(cmd, client, lab.JoinLines(unread, err))
		},
	}
	f := cmd.Flags()
	f.IntVar(&opts.Nodes, "nodes", 2, "number of nodes, where no manifest has a Node")
	f.StringVar(&opts.FastPath, "fast-path", string(fastpath.Default), "the nodes' fast path: auto (where the kernel can, which needs root), on, off")
	f.StringVar(&opts.SocketLB, "socket-lb", string(agent.DefaultSocketLB), "the nodes' translation of Services at the pods' sockets: auto (where the kernel can, which needs root), on, off")
	f.StringVar(&opts.ProxyBackend, "proxy-backend", "auto", "how Services are brought to the kernel: auto, nftables, iptables (by the host's programs)")
	f.StringVar(&opts.Overlay, "overlay", "auto", "how packets reach other nodes' pods: auto, vxlan, direct")
	f.Uint16Var(&opts.VXLANPort, "vxlan-port", overlay.DefaultPort, "UDP port of VXLAN")
	f.StringVar(&opts.Families, "ip-family", "", "ipv4, ipv6 or dual (default dual, or ipv4 where the kernel has no IPv6)")
	f.DurationVar(&opts.Timeout, "timeout", time.Minute, "how long to wait until all is Ready")
	f.BoolVar(&kubernetes, "kubernetes", false, "a real Kubernetes, in the foreground; needs root, Go and a checkout of the sources")
	filesFlag(cmd, &files)
	return cmd
}

// progress prints what goes on, but nothing in the first two seconds.
func progress(w io.Writer) func(string) {
	began := time.Now()
	return func(text string) {
		if time.Since(began) > 2*time.Second {
			fmt.Fprintln(w, "podlane:", text)
		}
	}
}

func reportUp(cmd *cobra.Command, client *lab.Client, err error) error {
	if client == nil || cmd.Context().Err() != nil {
		return err
	}
	st, stErr := client.Status(context.WithoutCancel(cmd.Context()))
	if stErr != nil {
		return lab.JoinLines(err, stErr)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "lab %s is up: %d nodes, %d pods (podlane lab status, exec, apply, down)\n", st.Name, len(st.Nodes), len(st.Pods))
	return err
}

func filesFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "file", "f", nil, "manifests: a file, a folder, or - for standard input; may be given several times")
}

// readManifests reads objects. The first error names documents that could not be
// read, beside which the others are good; the second says that there are none.
func readManifests(cmd *cobra.Command, paths []string) (all *file.Objects, unread, err error) {
	all = &file.Objects{}
	for _, path := range paths {
		objects, problems, err := file.Read(path)
		if err != nil {
			return nil, nil, err
		}
		if w := objects.Warning(); w != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "podlane: %s: %s\n", path, w)
		}
		for _, p := range problems {
			if p.Kind == "File" {
				unread = lab.JoinLines(unread, &lineError{p.String()})
			} else {
				fmt.Fprintln(cmd.ErrOrStderr(), "podlane:", p)
			}
		}
		all = lab.Merge(all, objects)
	}
	return all, unread, nil
}

// lineError is an error of one line among several.
type lineError struct{ text string }

func (e *lineError) Error() string { return e.text }

func dial(name *string) (*lab.Client, error) { return lab.Dial(*name) }

func newLabStatus(name *string) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the lab's nodes, pods and Services",
		Example: "  podlane lab status\n  podlane lab status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := dial(name)
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), st)
			}
			return printStatus(cmd.OutOrStdout(), st)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func printStatus(w io.Writer, st *lab.Status) error {
	rights := "in a user namespace (so no fast path)"
	if st.Root {
		rights = "as root"
	}
	fmt.Fprintf(w, "lab %s, overlay %s, %s, in %s\n\n", st.Name, st.Overlay, rights, st.Dir)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tREADY\tADDRESSES\tPOD CIDRS\tAGENT")
	for _, n := range st.Nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", n.Name, yes(n.Ready), strings.Join(n.Addresses, " "), strings.Join(n.PodCIDRs, " "), process(n.Agent))
	}
	fmt.Fprintln(t, "\nPOD\tREADY\tNODE\tIPS\tRUNS\tREASON")
	for _, p := range st.Pods {
		var runs []string
		for _, c := range p.Containers {
			runs = append(runs, c.Runs)
		}
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%s\t%s\n", p.Namespace, p.Name, yes(p.Ready), p.Node, strings.Join(p.IPs, " "), strings.Join(runs, "; "), p.Reason)
	}
	fmt.Fprintln(t, "\nSERVICE\tTYPE\tCLUSTER IPS\tPORTS\tENDPOINTS READY")
	for _, s := range st.Services {
		fmt.Fprintf(t, "%s/%s\t%s\t%s\t%s\t%d of %d\n", s.Namespace, s.Name, s.Type, orNone(s.ClusterIPs), orNone(s.Ports), s.Ready, s.Endpoints)
	}
	for _, p := range st.Problems {
		fmt.Fprintf(t, "\nproblem: %s\n", p)
	}
	return t.Flush()
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}

func process(p lab.ProcessStatus) string {
	s := p.State
	if p.Restarts > 0 {
		s += fmt.Sprintf(", %d restarts", p.Restarts)
	}
	if p.Reason != "" {
		s += ": " + p.Reason
	}
	return s
}

func newLabExec(name *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec TARGET [--] COMMAND [ARG...]",
		Short: "Run a command of this machine in a pod, on a node, or outside",
		Long: `Run a command of this machine in a pod (its network, its /etc/resolv.conf and /etc/hosts), on a node, or "outside", a host beside the
nodes. TARGET is a pod (curl, default/curl), a Deployment for its first pod, node/NAME, or outside. The exit status is the command's.`,
		Example: `  podlane lab exec curl -- curl -s nginx-service:8000
  podlane lab exec node/n1 -- nft list ruleset
  podlane lab exec outside -- ping -c1 192.168.200.1`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := dial(name)
			if err != nil {
				return err
			}
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			code, err := client.Exec(cmd.Context(), args[0], argv, lab.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
			if err != nil || code == 0 {
				return err
			}
			return &exitError{code: code}
		},
	}
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func newLabApply(name *string) *cobra.Command {
	var files []string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:     "apply -f FILE",
		Short:   "Add or replace objects, and wait until all in the lab is Ready",
		Example: "  podlane lab apply -f examples/nginx.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, objects, unread, err := forChange(cmd, name, files)
			if err != nil {
				return err
			}
			problems, err := client.Apply(cmd.Context(), objects)
			if err != nil {
				return err
			}
			if len(problems) > 0 {
				unread = lab.JoinLines(unread, &lab.ProblemsError{Lines: problems})
			}
			late := fmt.Errorf("not all is ready after %v", timeout)
			ctx, cancel := context.WithTimeoutCause(cmd.Context(), timeout, late)
			defer cancel()
			_, err = client.Wait(ctx, progress(cmd.ErrOrStderr()))
			return lab.JoinLines(unread, err)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long to wait until all is Ready")
	filesFlag(cmd, &files)
	return cmd
}

func newLabDelete(name *string) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:     "delete -f FILE",
		Short:   "Remove the objects of the manifests from the lab",
		Example: "  podlane lab delete -f examples/nginx.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, objects, unread, err := forChange(cmd, name, files)
			if err != nil {
				return err
			}
			return lab.JoinLines(unread, client.Delete(cmd.Context(), objects))
		},
	}
	filesFlag(cmd, &files)
	return cmd
}

func forChange(cmd *cobra.Command, name *string, files []string) (*lab.Client, *file.Objects, error, error) {
	if len(files) == 0 {
		return nil, nil, nil, errors.New("-f FILE is missing")
	}
	objects, unread, err := readManifests(cmd, files)
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := dial(name)
	return client, objects, unread, err
}

func newLabAgents(name *string) *cobra.Command {
	return &cobra.Command{
		Use:     "agents stop|kill|start [NODE...]",
		Short:   "Stop (SIGTERM), kill (SIGKILL) or start the agents of nodes, of all without a name",
		Example: "  podlane lab agents kill\n  podlane lab agents start n1",
		Args: func(_ *cobra.Command, args []string) error {
			actions := []string{string(lab.AgentStop), string(lab.AgentKill), string(lab.AgentStart)}
			if len(args) == 0 || !slices.Contains(actions, args[0]) {
				return fmt.Errorf("want one of %s, then nodes", strings.Join(actions, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := dial(name)
			if err != nil {
				return err
			}
			return client.Agents(cmd.Context(), lab.AgentAction(args[0]), args[1:]...)
		},
	}
}

func newLabLogs(name *string) *cobra.Command {
	return &cobra.Command{
		Use:     "logs TARGET",
		Short:   "Print the log of a pod, of node/NAME's agent, or of the lab's holder",
		Example: "  podlane lab logs default/curl\n  podlane lab logs node/n1\n  podlane lab logs holder",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := dial(name)
			if err != nil {
				return err
			}
			path, err := client.LogFile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			f, err := os.Open(filepath.Clean(path))
			if errors.Is(err, os.ErrNotExist) {
				return nil // it has printed nothing
			}
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(cmd.OutOrStdout(), f)
			return err
		},
	}
}

func newLabDown(name *string) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "End the lab and everything of it",
		Example: "  podlane lab down\n  podlane lab down --all",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !all {
				return lab.Down(cmd.Context(), *name)
			}
			names, err := lab.Names()
			for _, n := range names {
				err = lab.JoinLines(err, lab.Down(cmd.Context(), n))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "end all labs of this user")
	return cmd
}

// newLabHold is the holder, which "lab up" starts.
func newLabHold() *cobra.Command {
	return &cobra.Command{
		Use: "hold DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return lab.Hold(args[0], cmd.InOrStdin()) },
	}
}

// newLabStandIn is a container that stands for an image.
func newLabStandIn() *cobra.Command {
	var s lab.StandIn
	cmd := &cobra.Command{
		Use: "stand-in", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.Run(cmd.Context(), cmd.OutOrStdout()) },
	}
	cmd.Flags().StringVar(&s.Image, "image", "", "the image's name")
	cmd.Flags().StringVar(&s.Pod, "pod", "", "the pod's name")
	cmd.Flags().StringSliceVar(&s.Ports, "port", nil, "NUMBER/tcp or NUMBER/udp")
	return cmd
}

// newLabClient makes requests to stand-ins and counts who answers.
func newLabClient() *cobra.Command {
	var t lab.Traffic
	cmd := &cobra.Command{
		Use:     "client URL",
		Short:   "Make requests, each from a new source port, and count which pod answers",
		Long:    "Make requests to stand-ins, over HTTP each a new TCP connection, over UDP one datagram, each from a new source port, and print as JSON who answered.",
		Example: "  podlane lab exec curl -- podlane lab client -n 1000 http://nginx-service:8000\n  podlane lab exec curl -- podlane lab client udp://echo:5000",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.URL = args[0]
			result, err := t.Run(cmd.Context())
			if err != nil {
				return err
			}
			if err := printJSON(cmd.OutOrStdout(), result); err != nil {
				return err
			}
			if result.Failed+result.LongLost > 0 {
				return &exitError{code: 1, err: fmt.Errorf("%d of %d requests failed, and %d long connections ended", result.Failed, result.Requests, result.LongLost)}
			}
			return nil
		},
	}
	cmd.Flags().IntVarP(&t.Requests, "requests", "n", 1, "number of requests")
	cmd.Flags().IntVar(&t.Parallel, "parallel", 8, "requests at the same time")
	cmd.Flags().DurationVar(&t.Timeout, "timeout", 5*time.Second, "of one request")
	cmd.Flags().IntVar(&t.Rate, "rate", 0, "requests a second at most; 0 is no limit")
	cmd.Flags().IntVar(&t.Long, "long", 0, "so many more connections that stay open, with a request every 100 ms (HTTP)")
	return cmd
}
