package main

import (
	"fmt"
	"net"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/explain/live"
	"github.com/podlane/podlane/explain/view"
)

// newLabView serves a page that shows the lab.
func newLabView() *cobra.Command {
	port := 0
	cmd := &cobra.Command{
		Use:   "view",
		Short: "Serve a page that shows the lab: nodes, pods, Services, new flows per second; click two to see the path",
		Long: `Serve one page on this machine's loopback address that shows the lab as a picture: nodes, pods, Services, and on the arrows how many new flows per second
go from whom by which Service to which pod. A click on a pod or node and then on a Service or pod shows the path, as podlane lab explain does.
The page loads nothing from elsewhere. It is served until Ctrl-C.`,
		Example: "  podlane lab view\n  podlane lab view --port 8088",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			name, err := cmd.Flags().GetString("name")
			if err != nil {
				return err
			}
			if _, err := live.Lab(cmd.Context(), name); err != nil {
				return asTwo(err)
			}
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return asTwo(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "http://%s/\n", l.Addr())
			return (&view.Viewer{Name: "lab " + name, Source: live.LabView{Name: name}}).Serve(cmd.Context(), l)
		},
	}
	cmd.Flags().IntVar(&port, "port", 0, "the port; 0 takes a free one")
	return cmd
}
