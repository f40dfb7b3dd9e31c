package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/takeover"
)

type takeoverFlags struct {
	runDir, stateDir, kubeconfig, daemonSet string
	yes                                     bool
	wait                                    time.Duration
}

func newTakeover() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "takeover",
		Short: "Take over from what a cluster has: kube-proxy, or its DNS server",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newTakeoverDNS(), newTakeoverKubeProxy())
	return cmd
}

func newTakeoverKubeProxy() *cobra.Command {
	var f takeoverFlags
	cmd := &cobra.Command{
		Use:   "kube-proxy",
		Short: "Replace kube-proxy on this node, without a failed connection",
		Long: `Replace kube-proxy on this node. Without --yes it prints what it would do and changes nothing. The steps, each of which is left out where it is done:

  1. Podlane's rules go in beside kube-proxy's: this node's agent is told to.
  2. kube-proxy ends: with --kubeconfig its DaemonSet is saved and deleted; without, you stop it yourself and run this again.
  3. kube-proxy's rules are removed. Flows that it translated go on.

On a cluster of several nodes: run it with --yes and without --kubeconfig on every node (step 1), then on one node with --kubeconfig (step 2 ends kube-proxy
everywhere), then once more on every other node (step 3). It needs CAP_NET_ADMIN in the node's network namespace; for kube-proxy's iptables mode it runs the
host's iptables-save and iptables-restore.`,
		Example: `  podlane takeover kube-proxy
  podlane takeover kube-proxy --yes
  podlane takeover kube-proxy --yes --kubeconfig /etc/kubernetes/admin.conf`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runTakeover(cmd, f) },
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.yes, "yes", false, "do it; without, only print the steps")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig of one who may delete kube-proxy's DaemonSet")
	fl.StringVar(&f.daemonSet, "daemonset", "kube-system/kube-proxy", "kube-proxy's DaemonSet: namespace/name")
	fl.StringVar(&f.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	fl.StringVar(&f.stateDir, "state-dir", "/var/lib/podlane", "folder where the DaemonSet is saved")
	fl.DurationVar(&f.wait, "wait", 2*time.Minute, "how long kube-proxy may take to end")
	return cmd
}

func runTakeover(cmd *cobra.Command, f takeoverFlags) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	e, err := takeover.Detect(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "found:", e)
	switch {
	case e.IPVS:
		return errors.New("takeover: kube-proxy runs in its IPVS mode, whose rules only itself removes: stop it, run `kube-proxy --cleanup`, then start the agent with --service-proxy on")
	case !e.Any():
		_, err := fmt.Fprintln(out, "nothing to do")
		return err
	case !f.yes:
		return printTakeover(out, f, e)
	}
	if err := askServe(filepath.Join(f.runDir, "agent.sock")); err != nil {
		return err
	}
	fmt.Fprintln(out, "1. done: podlane's rules are in")
	if e.Runs() {
		if err := stopKubeProxy(ctx, out, f); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "2. done: kube-proxy does not run on this node")
	done, err := takeover.RemoveRules(ctx)
	for _, d := range done {
		fmt.Fprintln(out, "3. "+d)
	}
	if err == nil {
		_, err = fmt.Fprintln(out, "3. done: nothing of kube-proxy is left in this node's kernel")
	}
	return err
}

func printTakeover(out io.Writer, f takeoverFlags, e takeover.Evidence) error {
	fmt.Fprintf(out, "1. put podlane's rules in beside kube-proxy's: the agent is told over %s\n", filepath.Join(f.runDir, "agent.sock"))
	namespace, name, _ := strings.Cut(f.daemonSet, "/")
	switch {
	case !e.Runs():
		fmt.Fprintln(out, "2. (kube-proxy does not run)")
	case f.kubeconfig == "":
		fmt.Fprintf(out, "2. you end kube-proxy once step 1 is done on every node, then run this again: kubectl -n %s delete daemonset %s (or give --kubeconfig)\n", namespace, name)
	default:
		fmt.Fprintf(out, "2. save the DaemonSet %s to %s, delete it, wait until kube-proxy has ended here. THIS ENDS IT ON ALL NODES: do step 1 on each first\n", f.daemonSet, f.saved())
	}
	fmt.Fprintf(out, "3. remove kube-proxy's rules from this node: %s\n", strings.Join(e.Rules, ", "))
	_, err := fmt.Fprintln(out, "nothing was changed; --yes does it")
	return err
}

// saved is where the DaemonSet is kept for the way back.
func (f takeoverFlags) saved() string { return filepath.Join(f.stateDir, "kube-proxy-daemonset.json") }

// askServe has the agent put our rules in.
func askServe(socket string) error {
	reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbServe}, 2*time.Minute)
	if err != nil {
		return fmt.Errorf("takeover: no agent answers on %s (is `podlane agent` running on this node?): %w", socket, err)
	}
	if reply.Error != nil {
		return fmt.Errorf("takeover: the agent: %w", reply.Error)
	}
	return nil
}

// stopKubeProxy ends kube-proxy through the API, or says how, and waits for its
// end: rules that a running one has it would make again.
func stopKubeProxy(ctx context.Context, out io.Writer, f takeoverFlags) error {
	namespace, name, ok := strings.Cut(f.daemonSet, "/")
	if !ok {
		return fmt.Errorf("--daemonset %q: want namespace/name", f.daemonSet)
	}
	if f.kubeconfig == "" {
		return fmt.Errorf("takeover: kube-proxy still runs; once step 1 is done on every node, end it (kubectl -n %s delete daemonset %s) and run this again", namespace, name)
	}
	d, err := kube.NewDaemonSet(f.kubeconfig, namespace, name)
	if err != nil {
		return err
	}
	if err := save(ctx, d, f.saved()); err != nil {
		return err
	}
	if err := d.Delete(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "2. daemonset %s deleted (the way back: kubectl create -f %s); waiting for kube-proxy's end\n", f.daemonSet, f.saved())
	ctx, cancel := context.WithTimeout(ctx, f.wait)
	defer cancel()
	for {
		if e, err := takeover.Detect(ctx); err == nil && !e.Runs() {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("takeover: kube-proxy still answers after %s: its rules stay; end it and run this again", f.wait)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func save(ctx context.Context, d *kube.DaemonSet, path string) error {
	data, err := d.JSON(ctx)
	if err != nil || data == nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}
