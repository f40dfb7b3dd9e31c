package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/doctor"
	"github.com/podlane/podlane/explain/observe"
)

type doctorFlags struct {
	whereFlags
	output                   string
	preflight, list, verbose bool
}

func newDoctor() *cobra.Command {
	f := doctorFlags{}
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for known traps: what is wrong, the evidence, and the command that mends it",
		Long: `Look for the traps that cluster networks are known to fall into. On a node it asks the agent, which compares the kernel with its Plan, and tries the ways
to the other nodes and to the DNS servers: small and full-size packets, the underlay and the overlay. With --kubeconfig it does so on all nodes, by
their agents' pods and with your own rights, so that each pair of nodes is tried both ways. With --lab it looks at all nodes of a lab, and
needs no agent. With --preflight it tries in a throw-away network namespace what the kernel can do, before anything is installed.

Every finding has an id, such as PL-021, by which docs/doctor.md explains it. The exit status is 1 when something was found that loses packets (fail),
0 also with warnings, 2 when it could not look.`,
		Example: "  podlane doctor\n  podlane doctor --kubeconfig ~/.kube/config\n  podlane doctor --preflight\n  podlane lab doctor\n  podlane doctor --list",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return asTwo(runDoctor(cmd, f)) },
	}
	fl := cmd.Flags()
	f.whereFlags.add(cmd)
	fl.StringVarP(&f.output, "output", "o", "text", "text, json")
	fl.BoolVar(&f.preflight, "preflight", false, "what can this machine's kernel do?")
	fl.BoolVar(&f.list, "list", false, "print all checks and do nothing")
	fl.BoolVarP(&f.verbose, "verbose", "v", false, "print what is merely worth knowing, too")
	return cmd
}

// newLabDoctor is `podlane lab doctor`: the same for a lab.
func newLabDoctor() *cobra.Command {
	cmd := newDoctor()
	inLab(cmd, "preflight")
	cmd.Short += ", in a lab"
	cmd.Example = "  podlane lab doctor\n  podlane lab doctor --name other -v"
	return cmd
}

func runDoctor(cmd *cobra.Command, f doctorFlags) error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("-o %q: want text or json", f.output)
	}
	if f.list {
		return listChecks(cmd.OutOrStdout())
	}
	found, where, err := f.find(cmd.Context())
	if err != nil {
		return err
	}
	if f.output == "json" {
		err = printJSON(cmd.OutOrStdout(), found)
	} else {
		err = printFindings(cmd.OutOrStdout(), where, found, f.verbose)
	}
	if err == nil && doctor.Failed(found) {
		return errDiffers
	}
	return err
}

// find looks, and says where it has looked.
func (f *doctorFlags) find(ctx context.Context) ([]doctor.Finding, string, error) {
	if f.preflight {
		features, err := tryFeatures(ctx)
		return doctor.Preflight(features), "this kernel", err
	}
	c, err := f.reach(ctx, false)
	if err != nil {
		return nil, "", err
	}
	if c == nil {
		return f.onNode(ctx)
	}
	names := c.NodeNames()
	exams, err := c.Exam(ctx, names...)
	if err != nil {
		return nil, "", err
	}
	found := doctor.Nodes(exams)
	if p := c.AnyPlan(); p != nil {
		found = append(doctor.Cluster(p), found...)
	}
	where := fmt.Sprintf("%s, %d nodes", c.Name, len(names))
	if f.lab != "" {
		where = "lab " + where
	}
	return found, where, nil
}

// onNode asks the agent of this node, and tries the ways itself.
func (f *doctorFlags) onNode(ctx context.Context) ([]doctor.Finding, string, error) {
	var x agent.Examination
	if err := f.ask(agent.VerbDoctor, nil, &x); err != nil {
		return nil, "", fmt.Errorf("PL-001: %w", err)
	}
	x.Exam.Try(ctx)
	return append(x.Cluster, doctor.Nodes([]*observe.Exam{x.Exam})...), "node " + x.Exam.Node, nil
}

// tryFeatures runs the tries in a child with a network namespace of its own, and
// without root with a user namespace too.
func tryFeatures(ctx context.Context) ([]observe.Feature, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self, "observe", "features")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return []observe.Feature{{Name: "rights", Error: err.Error()}}, nil
		}
		return nil, fmt.Errorf("try the kernel's features: %w: %s", err, errs.String())
	}
	var features []observe.Feature
	return features, json.Unmarshal(out.Bytes(), &features)
}

func listChecks(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range doctor.Checks() {
		fmt.Fprintf(t, "%s\t%s\n", c.ID, c.Title)
	}
	return t.Flush()
}

func printFindings(w io.Writer, where string, found []doctor.Finding, verbose bool) error {
	var b bytes.Buffer
	shown, quiet := 0, 0
	for _, f := range found {
		if f.Severity == doctor.Info && !verbose {
			quiet++
			continue
		}
		shown++
		on := ""
		if f.Node != "" {
			on = "node " + f.Node + ": "
		}
		fmt.Fprintf(&b, "%s %s  %s\n  %s%s\n  mend: %s\n", f.ID, f.Severity, f.Title, on, f.Evidence, f.Mend)
	}
	if shown == 0 {
		fmt.Fprintf(&b, "%s: all is well (%d checks)\n", where, len(doctor.Checks()))
	}
	if quiet > 0 {
		fmt.Fprintf(&b, "%d more worth knowing: -v\n", quiet)
	}
	_, err := w.Write(b.Bytes())
	return err
}
