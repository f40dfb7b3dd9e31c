package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/explain/live"
)

// newExplainConn says of connections that there are where they went.
func newExplainConn() *cobra.Command {
	var asJSON bool
	var name string
	cmd := &cobra.Command{
		Use:   "conn [ADDRESS[:PORT]|POD|SERVICE]",
		Short: "Say of the connections that there are, from conntrack, which pod each went to",
		Long: `Say of the connections that there are, from the nodes' conntrack, to which pod each was sent, and since when where the kernel keeps that
(sysctl net.netfilter.nf_conntrack_timestamp=1 on the node). Without an argument: all that a Service's rules translated. It needs a lab.`,
		Example: "  podlane lab explain conn\n  podlane lab explain conn default/curl\n  podlane lab explain conn 10.244.1.3:43210",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if inLab, err := cmd.Flags().GetString("name"); err == nil && name == "" {
				name = inLab
			}
			if name == "" {
				return &exitError{2, errors.New("explain conn: give --lab NAME, or use podlane lab explain conn")}
			}
			c, err := live.Read(cmd.Context(), name)
			if err != nil {
				return asTwo(err)
			}
			list, err := c.Connections(cmd.Context(), first(args))
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
	cmd.Flags().StringVar(&name, "lab", "", "the lab of this name")
	return cmd
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
