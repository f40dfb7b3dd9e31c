package main

import "github.com/spf13/cobra"

// newWait is for the container of a pod whose work its init containers have done: a
// Deployment and a DaemonSet want one that stays.
func newWait() *cobra.Command {
	return &cobra.Command{
		Use:    "wait",
		Short:  "Do nothing until a signal comes",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}
