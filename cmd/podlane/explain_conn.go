package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/explain/observe"
)

// newExplainConn says of connections that there are where they went.
func newExplainConn() *cobra.Command {
	var asJSON bool
	var f whereFlags
	cmd := &cobra.Command{
		Use:   "conn [ADDRESS[:PORT]|POD|SERVICE]",
		Short: "Say of the connections that there are, from conntrack, which pod each went to",
		Long: `Say of the connections that there are, from the nodes' conntrack, to which pod each was sent, and since when where the kernel keeps that
(sysctl net.netfilter.nf_conntrack_timestamp=1 on the node). Without an argument: all that a Service's rules translated. It asks the agent of this
node, or with --kubeconfig or --lab all nodes.`,
		Example: "  podlane explain conn svc-or-pod-or-address\n  podlane lab explain conn\n  podlane lab explain conn default/curl\n  podlane lab explain conn 10.244.1.3:43210",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if lab, err := cmd.Flags().GetString("name"); err == nil && f.lab == "" {
				f.lab = lab
			}
			list, err := f.connections(cmd.Context(), first(args))
			if err != nil {
				return asTwo(err)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			for _, conn := range list {
				fmt.Fprintf(cmd.OutOrStdout(), "node %s: %s\n", conn.Node, conn)
			}
			if len(list) == 0 {
				return &exitError{1, errors.New("no such connection in the nodes' conntrack (one that has ended stays there for up to two minutes)")}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	f.add(cmd)
	return cmd
}

func (f *whereFlags) connections(ctx context.Context, match string) (list []observe.Connection, err error) {
	c, err := f.reach(ctx, false)
	switch {
	case err != nil:
		return nil, err
	case c != nil:
		return c.Connections(ctx, match)
	}
	return list, f.ask(agent.VerbConn, match, &list)
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
