package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/kernel/nft"
	"github.com/podlane/podlane/perf"
)

// newPerfWitness prints what this node's data path has counted so far: what shows which way a measurement's packets
// went. It runs on a node with podlane's network, for perf run and lab perf. What cannot be read is left out.
func newPerfWitness() *cobra.Command {
	var runDir string
	cmd := &cobra.Command{
		Use: "witness NAMESPACE/SERVICE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			counts := map[string]uint64{}
			text, err := os.ReadFile("/proc/net/dev")
			if err != nil {
				return err
			}
			if counts[perf.Tunnelled], err = overlayPackets(string(text)); err != nil {
				return err
			}
			conn, err := nft.Dial(0)
			if err != nil {
				return err
			}
			defer conn.Close()
			services, _, err := readCounts(conn, bpfDir())
			if err != nil {
				return err
			}
			if len(services) > 0 { // they are podlane's, the one asked for or not yet
				counts[perf.Connections] = 0
			}
			for _, l := range services {
				if l.Service == args[0] || strings.HasPrefix(l.Service, args[0]+":") {
					counts[perf.Connections] += l.New
				}
			}
			if s, err := askStatus(filepath.Join(runDir, "agent.sock")); err == nil {
				for _, c := range s.FastPath.Counters {
					if strings.HasPrefix(c.Reason, "shortcut_") {
						counts[perf.Shortened] += c.Packets
					}
					if c.Reason == "shortcut_encap" || c.Reason == "shortcut_decap" { // past the overlay's device
						counts[perf.Tunnelled] += c.Packets
					}
				}
				for _, c := range s.SocketLB.Counters {
					if c.Reason == "translated" {
						counts[perf.AtSockets] += c.Packets
					}
				}
			}
			return printJSON(cmd.OutOrStdout(), counts)
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	return cmd
}

// overlayPackets adds up what the overlay's devices have received and sent, as /proc/net/dev has it.
func overlayPackets(text string) (sum uint64, err error) {
	for line := range strings.Lines(text) {
		name, numbers, _ := strings.Cut(line, ":")
		fields := strings.Fields(numbers)
		if !strings.HasPrefix(strings.TrimSpace(name), "pl-vxlan") || len(fields) < 10 {
			continue
		}
		for _, i := range []int{1, 9} {
			n, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("/proc/net/dev: %w", err)
			}
			sum += n
		}
	}
	return sum, nil
}
