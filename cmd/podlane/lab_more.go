package main

import "github.com/spf13/cobra"

// newLabAndMore is the verb lab with what shows a lab.
func newLabAndMore() *cobra.Command {
	cmd := newLab()
	cmd.AddCommand(newLabExplain(), newLabDoctor(), newLabView())
	return cmd
}
