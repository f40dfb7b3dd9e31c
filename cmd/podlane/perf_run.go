package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/perf/kube"
	"github.com/podlane/podlane/perf/rig"
)

func newPerfRun() *cobra.Command {
	var p perfFlags
	var o kube.Options
	var dryRun bool
	family := "ipv4"
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure a cluster's network: node to node, pod to pod, pod to Service to pod",
		Long: `Put servers and clients on two nodes of a cluster, whatever its network is, and measure node to node, pod to pod, and pod to Service to pod in
interleaved rounds: ratios with intervals, and the CPU that each costs on both nodes.

All of it lies in a namespace of its own, and one beside it for the two pods on the host network. A keeper pod in it holds a connection to this command: when that
ends, by Ctrl-C, SIGKILL or a machine that goes down, it deletes both. "podlane perf cleanup" does the same by hand.

It needs the rights to make namespaces, pods, services, a service account, a role and its binding, to exec into and attach to the pods, and to list nodes.
The image is podlane's own. Exit status 3: there is no result, or it must not be used.`,
		Example: `  podlane perf run --html cluster.html --json run.json
  podlane perf run --from worker-1 --to worker-2 --paths node-pod,same-node,hairpin,node-port
  podlane perf run --gentle
  podlane perf run --dry-run --from a --to b`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Config, err = p.resolve(); err != nil {
				return &exitError{statusInvalid, err}
			}
			if family != "ipv4" && family != "ipv6" {
				return &exitError{statusInvalid, fmt.Errorf("--ip-family %s: want ipv4 or ipv6", family)}
			}
			o.IPv6 = family == "ipv6"
			o.Progress = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), "podlane:", text) }
			o.Config.Progress = tellProgress(cmd.ErrOrStderr())
			if dryRun {
				text, err := kube.Manifests(cmd.Context(), o)
				if err != nil {
					return &exitError{statusInvalid, err}
				}
				fmt.Fprint(cmd.OutOrStdout(), text)
				return nil
			}
			o.Guard = func(id string) (func(), error) { return guardRun(o, id) }
			e, err := kube.Run(cmd.Context(), o)
			return p.finish(cmd, e, err)
		},
	}
	f := cmd.Flags()
	clusterFlags(cmd, &o)
	f.StringVar(&o.Image, "image", "ghcr.io/podlane/podlane:devel", "podlane's image")
	f.StringVar(&o.From, "from", "", "node of the clients (default: picked)")
	f.StringVar(&o.To, "to", "", "node of the servers (default: picked)")
	f.StringSliceVar(&o.Further, "paths", nil, "further paths: "+strings.Join(kube.Further, ", "))
	f.StringVar(&family, "ip-family", "ipv4", "ipv4 or ipv6")
	f.DurationVar(&o.Timeout, "timeout", 2*time.Minute, "how long to wait for the pods")
	f.BoolVar(&dryRun, "dry-run", false, "print the manifests and make nothing")
	p.flags(f)
	return cmd
}

func clusterFlags(cmd *cobra.Command, o *kube.Options) {
	cmd.Flags().StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig (default as kubectl finds it)")
	cmd.Flags().StringVar(&o.Context, "context", "", "context of the kubeconfig")
}

func newPerfCleanup() *cobra.Command {
	var o kube.Options
	var all bool
	cmd := &cobra.Command{
		Use:   "cleanup [RUN]",
		Short: "Delete what runs have left in a cluster: those whose time is over, one, or all",
		Example: `  podlane perf cleanup
  podlane perf cleanup 3k2mfqza
  podlane perf cleanup --all`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := ""
			if len(args) == 1 {
				id = args[0]
			}
			if all {
				id = "all"
			}
			o.Progress = func(text string) { fmt.Fprintln(cmd.OutOrStdout(), text) }
			return kube.Cleanup(cmd.Context(), o, id)
		},
	}
	clusterFlags(cmd, &o)
	cmd.Flags().BoolVar(&all, "all", false, "also runs that are still under way")
	return cmd
}

// newPerfKeeper runs in the cluster.
func newPerfKeeper() *cobra.Command {
	var until string
	cmd := &cobra.Command{
		Use: "keeper NAMESPACE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			at, err := time.Parse(time.RFC3339, until)
			if err != nil {
				return fmt.Errorf("--until %s: %w", until, err)
			}
			return kube.Keep(cmd.Context(), os.Stdin, args[0], at)
		},
	}
	cmd.Flags().StringVar(&until, "until", "", "when to delete it at the latest (RFC 3339)")
	return cmd
}

// guardRun starts the process that cleans up after this one should it be killed before there is a keeper.
func guardRun(o kube.Options, id string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return rig.StartGuard([]string{self, "perf", "guard", "--run", id, "--kubeconfig", o.Kubeconfig, "--context", o.Context})
}
