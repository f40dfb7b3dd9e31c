package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/kernel/bpf/socket"
	"github.com/podlane/podlane/kernel/nft"
	iptables "github.com/podlane/podlane/proxy/iptables/apply"
	"github.com/podlane/podlane/proxy/nftables/apply"
)

// bpfDirVariable names the agent's --bpf-dir in a node of a lab, where several nodes
// share one file system, and in a container, where it is mounted elsewhere: for the agent and for whatever is run beside it.
const (
	defaultBPFDir  = "/sys/fs/bpf/podlane"
	bpfDirVariable = "PODLANE_BPF_DIR"
)

// bpfDir is the agent's --bpf-dir where none is given.
func bpfDir() string { return cmp.Or(os.Getenv(bpfDirVariable), defaultBPFDir) }

// readCounts reads the counters of frontends, of the rules and at the sockets; those
// of endpoints at the sockets are with the latter.
func readCounts(conn *nft.Conn, dir string) ([]apply.Count, socket.Flows, error) {
	counts, err := apply.Counts(conn)
	if err == nil && len(counts) == 0 {
		counts, err = chainCounts()
	}
	if err != nil {
		return nil, socket.Flows{}, err
	}
	flows, err := socket.ReadFlows(dir)
	apply.AddTranslated(counts, flows.Frontends)
	return counts, flows, err
}

// chainCounts reads those of the iptables backend. Where its programs are not, nobody can have used it.
func chainCounts() (counts []apply.Count, err error) {
	chains, err := iptables.New("").Counts()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	for _, c := range chains {
		counts = append(counts, apply.Count(c))
	}
	return counts, err
}

// counterJSON is one line of `podlane counters --json`.
type counterJSON struct {
	Service  string `json:"service"`
	Protocol string `json:"protocol"`
	Frontend string `json:"frontend"`
	New      uint64 `json:"new_connections"`
}

func newCounters() *cobra.Command {
	var asJSON, endpoints bool
	var dir string
	cmd := &cobra.Command{
		Use:   "counters [NAMESPACE/SERVICE]",
		Short: "Print how many connections to each Service this node's kernel has balanced",
		Long: `Print how many new connections to each Service port the kernel of this node has seen, from the counters of the rules themselves.
It asks the kernel, not the agent, so it works with no agent running. It needs CAP_NET_ADMIN. Connections that were translated at a pod's socket
(--socket-lb) are counted there, and added; that needs the agent's --bpf-dir, and CAP_BPF. The iptables
backend's counters begin anew with every change of a Service.

With --endpoints it prints how many went to each endpoint, of the Services that ask for it by the annotation podlane.dev/count-endpoints="true",
or that the agent's --count-endpoints names.`,
		Example: "  podlane counters\n  podlane lab exec node/n1 -- podlane counters default/nginx-service\n  podlane counters --endpoints default/nginx-service",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conn, err := nft.Dial(0)
			if err != nil {
				return err
			}
			defer conn.Close()
			counts, flows, err := readCounts(conn, dir)
			if err != nil {
				return err
			}
			if endpoints {
				return printEndpointCounts(cmd.OutOrStdout(), conn, args, asJSON, func(ends []apply.EndpointCount) { apply.AddTranslatedTo(ends, counts, flows.Endpoints) })
			}
			lines := []counterJSON{}
			for _, c := range counts {
				if len(args) == 0 || c.Service == args[0] || strings.HasPrefix(c.Service, args[0]+":") {
					lines = append(lines, counterJSON{c.Service, c.Protocol.String(), c.Frontend.String(), c.New})
				}
			}
			if len(args) == 1 && len(lines) == 0 {
				return fmt.Errorf("no Service %s in this node's rules", args[0])
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), lines)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(t, "SERVICE\tPROTOCOL\tFRONTEND\tNEW CONNECTIONS")
			for _, l := range lines {
				fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", l.Service, l.Protocol, l.Frontend, l.New)
			}
			return t.Flush()
		},
	}
	cmd.Flags().StringVar(&dir, "bpf-dir", bpfDir(), "the agent's --bpf-dir")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&endpoints, "endpoints", false, "print the counters of endpoints")
	return cmd
}

type endpointCounterJSON struct {
	Service  string `json:"service"`
	Protocol string `json:"protocol"`
	Endpoint string `json:"endpoint"`
	New      uint64 `json:"newConnections"`
}

func printEndpointCounts(w io.Writer, conn *nft.Conn, args []string, asJSON bool, add func([]apply.EndpointCount)) error {
	counts, err := apply.EndpointCounts(conn, strings.Join(args, ""))
	if err != nil {
		return err
	}
	add(counts)
	if len(args) == 1 && len(counts) == 0 {
		return fmt.Errorf("service %s has no counters of endpoints: annotate it with podlane.dev/count-endpoints=\"true\", or name it in the agent's --count-endpoints", args[0])
	}
	lines := []endpointCounterJSON{}
	for _, c := range counts {
		lines = append(lines, endpointCounterJSON{c.Service, c.Protocol.String(), c.Endpoint.String(), c.New})
	}
	if asJSON {
		return printJSON(w, lines)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tPROTOCOL\tENDPOINT\tNEW CONNECTIONS")
	for _, l := range lines {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", l.Service, l.Protocol, l.Endpoint, l.New)
	}
	return t.Flush()
}
