package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/install"
)

// newWait is for containers that wait: of a pod whose work its init containers have done,
// since a Deployment and a DaemonSet want one that stays, and of a Job that ends when a
// DaemonSet has come to every node.
func newWait() *cobra.Command {
	var daemonSet, server string
	var kubeletConfigs []string
	cmd := &cobra.Command{
		Use:    "wait",
		Short:  "Do nothing until a signal comes, or a DaemonSet is on every node",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if daemonSet == "" {
				<-cmd.Context().Done()
				return nil
			}
			name, err := parseService(daemonSet)
			if err != nil {
				return fmt.Errorf("--daemonset: %w", err)
			}
			s, err := install.FindServer(server, kubeletConfigs)
			if err != nil {
				return err
			}
			api, err := kube.Options{Server: s.URL, Log: slog.New(slog.DiscardHandler)}.API()
			if err != nil {
				return err
			}
			return waitEverywhere(cmd.Context(), cmd.OutOrStdout(), api, "/apis/apps/v1/namespaces/"+name.Namespace+"/daemonsets/"+name.Name)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&daemonSet, "daemonset", "", "wait until its pods are ready on every node that is to have one: NAMESPACE/NAME")
	fl.StringVar(&server, "api-server", "", "with --daemonset: as of podlane agent, since there may be no Services any more")
	fl.StringSliceVar(&kubeletConfigs, "kubelet-kubeconfig", install.KubeletConfigs, "with --daemonset: as of podlane agent")
	return cmd
}

// onNodes is what is asked of a DaemonSet.
type onNodes struct {
	Metadata struct {
		Generation int64 `json:"generation"`
	} `json:"metadata"`
	Status struct {
		ObservedGeneration int64 `json:"observedGeneration"`
		Desired            int   `json:"desiredNumberScheduled"`
		Ready              int   `json:"numberReady"`
		Updated            int   `json:"updatedNumberScheduled"`
	} `json:"status"`
}

func (d *onNodes) everywhere() bool {
	return d.Status.ObservedGeneration >= d.Metadata.Generation && d.Status.Updated == d.Status.Desired && d.Status.Ready == d.Status.Desired
}

// waitEverywhere asks until a DaemonSet is on every node, and says what it waits for as
// that changes.
func waitEverywhere(ctx context.Context, out io.Writer, api *kube.API, path string) error {
	for said := ""; ; {
		var d onNodes
		found, err := api.Get(ctx, path, &d)
		now := fmt.Sprintf("ready on %d of %d nodes", d.Status.Ready, d.Status.Desired)
		switch {
		case err != nil:
			now = err.Error()
		case !found:
			now = path + " is not there"
		}
		if now != said {
			said = now
			fmt.Fprintln(out, now)
		}
		if found && err == nil && d.everywhere() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}
