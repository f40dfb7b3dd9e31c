package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/explain/live"
	"github.com/podlane/podlane/explain/observe"
)

// errDiffers ends a comparison that found something: exit status 1, and all is
// said already.
var errDiffers = &exitError{code: 1}

// verify explains an access and compares with reality.
func verify(cmd *cobra.Command, f explainFlags, a explain.Access) error {
	c, err := f.reach(cmd.Context(), true)
	if err != nil {
		return err
	}
	if c == nil {
		return errors.New("--verify asks several nodes: give --kubeconfig FILE, or --lab NAME")
	}
	v, err := c.Verify(cmd.Context(), a)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	switch f.output {
	case "json":
		err = printJSON(out, v)
	case "text":
		if err = v.Answer.Text(out); err == nil {
			err = printVerification(out, v)
		}
	default:
		err = errors.New("--verify has -o text and json")
	}
	if err == nil && !v.OK() {
		return errDiffers
	}
	return err
}

func printVerification(w io.Writer, v *live.Verification) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\nVERIFIED against the kernels of %s\n", strings.Join(nodesOf(v), ", "))
	if v.Probe != nil {
		fmt.Fprintf(&b, "  probe: %s", v.Probe)
		if v.Probe.Local.IsValid() {
			fmt.Fprintf(&b, ", %s to %s", v.Probe.Local, v.Probe.Remote)
		}
		if v.Took != nil {
			fmt.Fprintf(&b, "; it was given to %s, %s", v.Took.To, v.Took.End.Name)
		}
		b.WriteByte('\n')
	}
	if v.Counted < 0 && v.NotCounted != "" {
		fmt.Fprintf(&b, "  the frontend's counter was not read: %s\n", v.NotCounted)
	}
	if v.Counted >= 0 {
		fmt.Fprintf(&b, "  the frontend's counter rose by %d\n", v.Counted)
	}
	for _, n := range nodesOf(v) {
		s := v.Seen[n]
		for _, flow := range s.Flows {
			fmt.Fprintf(&b, "  %s conntrack: %s, answered %s\n", n, flow.Orig, flow.Reply)
		}
		if len(s.Steps) > 0 {
			fmt.Fprintf(&b, "  %s nftrace: %s\n", n, strings.Join(s.Steps, "; "))
		}
		if r := v.Reports[n]; r != nil && r.FastPath && !s.Seen {
			fmt.Fprintf(&b, "  %s: its fast path takes packets past conntrack and nftrace\n", n)
		}
		if s.Problem != "" {
			fmt.Fprintf(&b, "  %s: no trace: %s\n", n, s.Problem)
		}
	}
	if v.OK() {
		b.WriteString("all is as explained\n")
	} else {
		fmt.Fprintf(&b, "\nFIRST DIFFERENCE at %s\n  %s\n", v.First.Hop, v.First)
		if v.First.Mend != "" {
			fmt.Fprintf(&b, "  mend: %s\n", v.First.Mend)
		}
		for _, f := range v.All[1:] {
			fmt.Fprintf(&b, "also %s\n", f)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func nodesOf(v *live.Verification) []string {
	var names []string
	for _, p := range v.Answer.Paths {
		for _, h := range p.Forward {
			names = appendNew(names, h.Node)
		}
	}
	return names
}

func appendNew(list []string, s string) []string {
	for _, l := range list {
		if l == s || s == "" {
			return list
		}
	}
	if s == "" {
		return list
	}
	return append(list, s)
}

// compareAll compares everything that the nodes should have: those of a cluster,
// or this one.
func compareAll(cmd *cobra.Command, f explainFlags) error {
	c, err := f.reach(cmd.Context(), false)
	if err != nil {
		return err
	}
	reports := map[string]*observe.Report{}
	if c != nil {
		reports, err = c.Report(cmd.Context(), c.NodeNames()...)
	} else {
		own := &observe.Report{}
		err = f.ask(agent.VerbReport, nil, own)
		reports[own.Node] = own
	}
	if err != nil {
		return err
	}
	nodes, all := slices.Sorted(maps.Keys(reports)), []observe.Difference{}
	for _, n := range nodes {
		all = append(all, reports[n].Differences...)
	}
	if f.output == "json" {
		err = printJSON(cmd.OutOrStdout(), all)
	} else {
		err = printDifferences(cmd.OutOrStdout(), nodes, all)
	}
	if err == nil && len(all) > 0 {
		return errDiffers
	}
	return err
}

func printDifferences(w io.Writer, nodes []string, all []observe.Difference) error {
	var b strings.Builder
	for _, d := range all {
		fmt.Fprintf(&b, "%s\n  mend: %s\n", d, d.Mend)
	}
	if len(all) == 0 {
		fmt.Fprintf(&b, "the kernels of %s have what the cluster wants\n", strings.Join(nodes, ", "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
