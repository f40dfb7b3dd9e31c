package machines

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// The manifests, by their names in deploy/.
const (
	Manifest          = "podlane.yaml"
	UninstallManifest = "podlane-uninstall.yaml"
)

// Install installs Podlane as its manual says, and waits until all nodes are
// Ready and its pods run.
func (c *Cluster) Install(ctx context.Context) error {
	began := time.Now()
	if _, err := c.Kubectl(ctx, "apply", "-f", c.Path(Manifest)); err != nil {
		return err
	}
	for _, what := range [][]string{
		{"wait", "--for=condition=Ready", "nodes", "--all", "--timeout=3m"},
		{"-n", "podlane", "rollout", "status", "daemonset/podlane-agent", "--timeout=3m"},
		{"-n", "kube-system", "rollout", "status", "daemonset/podlane-dns", "--timeout=3m"},
		{"-n", "kube-system", "wait", "--for=create", "service/kube-dns", "--timeout=3m"},
	} {
		if _, err := c.Kubectl(ctx, what...); err != nil {
			return fmt.Errorf("install: %w\n%s", err, c.Describe(ctx))
		}
	}
	fmt.Fprintf(c.Log, "e2e: podlane is installed, all nodes are Ready (%.1fs)\n", time.Since(began).Seconds())
	return nil
}

// Describe gives what one wants to see when something failed.
func (c *Cluster) Describe(ctx context.Context) string {
	var b strings.Builder
	for _, what := range []string{
		"get nodes -o wide", "get pods -A -o wide", "get services,endpointslices -A", "get events -A --sort-by=.lastTimestamp",
		"-n podlane logs -l app.kubernetes.io/name=podlane --all-containers --prefix --tail=40", "-n kube-system logs -l app.kubernetes.io/name=podlane --prefix --tail=40",
	} {
		out, err := c.Kubectl(ctx, strings.Fields(what)...)
		fmt.Fprintf(&b, "--- kubectl %s\n%s", what, out)
		if err != nil {
			fmt.Fprintln(&b, err)
		}
	}
	return b.String()
}

// Usage tells how to use the cluster from a shell.
func (c *Cluster) Usage() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nA shell on the control plane's machine, until this program ends:\n\n  nsenter -t %s -a --wd=/ env KUBECONFIG=%s PATH=%s:$PATH sh\n\nand from there on the nodes:\n\n",
		os.Getenv(outerPID), c.Kubeconfig(), c.Bin)
	for _, n := range c.Nodes {
		fmt.Fprintf(&b, "  %s: nsenter -t %d -m -n -u -i sh\n", n.Name, n.PID)
	}
	return b.String() + "\n"
}
