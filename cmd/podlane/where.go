package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/explain/live"
)

// whereFlags say which cluster explain and doctor are about: a lab, one that is
// reached through its API server, or that of this node's agent.
type whereFlags struct{ lab, kubeconfig, runDir string }

func (f *whereFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.lab, "lab", "", "the lab of this name")
	fl.StringVar(&f.kubeconfig, "kubeconfig", "", "reach the cluster through its API server, with this kubeconfig; KUBECONFIG or ~/.kube/config is taken where this node has no agent, or other nodes must be asked")
	fl.StringVar(&f.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
}

// inLab makes a command that of the lab whose name the flag --name is.
func inLab(cmd *cobra.Command, hide ...string) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		name, err := cmd.Flags().GetString("name")
		if err != nil {
			return err
		}
		return cmd.Flags().Set("lab", name)
	}
	for _, flag := range append([]string{"lab", "kubeconfig", "run-dir"}, hide...) {
		_ = cmd.Flags().MarkHidden(flag)
	}
}

func (f *whereFlags) socket() string { return filepath.Join(f.runDir, "agent.sock") }

// reach gives the cluster that all of can be asked. It is nil where only this
// node's agent can, which is preferred unless other nodes are needed.
func (f *whereFlags) reach(ctx context.Context, others bool) (*live.Cluster, error) {
	if f.lab != "" {
		return live.Lab(ctx, f.lab)
	}
	_, err := os.Stat(f.socket())
	if f.kubeconfig == "" && (!others && err == nil || !kube.HasKubeconfig()) {
		return nil, nil
	}
	return live.Kube(ctx, f.kubeconfig)
}

// ask asks the agent of this node and reads its answer.
func (f *whereFlags) ask(verb string, question, into any) error {
	return askAgent(f.socket(), verb, question, into)
}

// askAgent asks the agent of a socket and reads its answer.
func askAgent(socket, verb string, question, into any) error {
	config, err := json.Marshal(question)
	if err != nil {
		return err
	}
	reply, err := shim.Ask(socket, shim.Request{Verb: verb, Config: config}, 30*time.Second)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no right to ask the agent on %s (it is root's): %w", socket, err)
	case err != nil:
		return fmt.Errorf("no agent answers on %s (is `podlane agent` running on this node? --kubeconfig, --lab and -f ask no agent of this node): %w", socket, err)
	case reply.Error != nil:
		return reply.Error
	}
	return json.Unmarshal(reply.Result, into)
}
