package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/guard"
)

func newStatus() *cobra.Command {
	var runDir string
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show what this node's agent is doing, and what is wrong",
		Long:    "Show what this node's agent is doing: its pods, what it knows of the cluster, and every problem by name. The exit status is 1 when something is not applied.",
		Example: "  podlane status\n  podlane status --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := askStatus(filepath.Join(runDir, "agent.sock"))
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd.OutOrStdout(), s)
			} else {
				err = printAgentStatus(cmd.OutOrStdout(), s)
			}
			if err == nil && (s.Error != "" || !s.Synced) {
				return &exitError{code: 1}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func askStatus(socket string) (*agent.Status, error) {
	reply, err := shim.Ask(socket, shim.Request{Verb: agent.VerbStatus}, 5*time.Second)
	if err != nil {
		return nil, &exitError{2, fmt.Errorf("no agent answers on %s (is `podlane agent` running on this node, and may you read its socket?): %w", socket, err)}
	}
	if reply.Error != nil {
		return nil, &exitError{2, reply.Error}
	}
	s := &agent.Status{}
	return s, json.Unmarshal(reply.Result, s)
}

func printAgentStatus(w io.Writer, s *agent.Status) error {
	state := "all is applied"
	switch {
	case !s.Synced:
		state = "waits for the cluster's first state"
	case s.Error != "":
		state = fmt.Sprintf("NOT all is applied, %d tries: %s", s.Failures, s.Error)
	}
	fmt.Fprintf(w, "node %s, up %s: %s\n%d nodes, %d Services\n", s.Node, s.Up.Round(time.Second), state, s.Nodes, s.Services)
	if s.Server != "" {
		fmt.Fprintf(w, "API server %s\n", s.Server)
	}
	printUnderlay(w, s)
	if s.Unready != "" {
		fmt.Fprintf(w, "no pods can be served: %s\n", s.Unready)
	}
	fmt.Fprintln(w, "NetworkPolicies are not enforced by this version")
	printFastPath(w, s.FastPath)
	printSocketLB(w, s.SocketLB)
	printDNSStatus(w, s.DNS)
	if err := printPeers(w, s.Peers); err != nil {
		return err
	}
	for _, reason := range guard.Reasons {
		if n := s.Dropped[reason]; n > 0 {
			fmt.Fprintf(w, "dropped %d packets: %s\n", n, reason)
		}
	}
	if len(s.Pods) > 0 {
		t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(t, "\nPOD\tADDRESSES\tLINK")
		for _, p := range s.Pods {
			fmt.Fprintf(t, "%s\t%s\t%s\n", p.Pod, addrText(p.Addrs), p.Dev)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "\nproblem: %s\n", p)
	}
	return nil
}

// printUnderlay tells what the node's packets go by, what is ours on the node, and what was wrong before.
func printUnderlay(w io.Writer, s *agent.Status) {
	if u := s.Underlay; u.Device != "" {
		var addrs []string
		for _, p := range u.Addrs {
			addrs = append(addrs, p.String())
		}
		fmt.Fprintf(w, "underlay %s, MTU %d, %s\n", u.Device, u.MTU, strings.Join(addrs, " "))
	}
	if o := s.Owned; o != nil {
		fmt.Fprintf(w, "ours: %d links, %d addresses, %d routes, %d neighbours, %d FDB entries, %d sysctls; nftables: %s\n",
			o.Links, o.Addresses, o.Routes, o.Neighbours, o.FDB, o.Sysctls, strings.Join(o.Tables, ", "))
	}
	if p := s.Past; p != nil {
		fmt.Fprintf(w, "last error, over since %s: %s\n", p.Until.Format(time.DateTime), p.Error)
	}
}

// mostPeers keeps the status to a screen; --json has all.
const mostPeers = 20

func printPeers(w io.Writer, peers []agent.PeerStatus) error {
	if len(peers) == 0 {
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "\nNODE\tPODS\tWAY\tPROBE\tWHY")
	ways := map[string]int{}
	for i, p := range peers {
		ways[p.Way]++
		if i < mostPeers {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", p.Node, p.CIDR, p.Way, p.Probe, p.Why)
		}
	}
	if err := t.Flush(); err != nil || len(peers) <= mostPeers {
		return err
	}
	_, err := fmt.Fprintf(w, "and %d more; of all: %d direct, %d vxlan, %d none\n", len(peers)-mostPeers, ways["direct"], ways["vxlan"], ways["none"])
	return err
}

func addrText(addrs []netip.Addr) string {
	var text []string
	for _, a := range addrs {
		text = append(text, a.String())
	}
	return strings.Join(text, " ")
}
