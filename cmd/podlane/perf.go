package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/perf/qperf"
)

func newPerf() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "perf",
		Short: "Measure what the network costs, and tell whether that has changed",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPerfCleanup(), newPerfCompare(), newPerfGuard(), newPerfKeeper(), newPerfReport(), newPerfRun(), newPerfServer(), newPerfClient(), newPerfWitness())
	return cmd
}

func newPerfServer() *cobra.Command {
	var config qperf.ServerConfig
	var addr string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Serve qperf clients until interrupted",
		Long: `Serve qperf clients, the real qperf 0.4.11 and podlane's own, until interrupted.

Clients are served side by side; their measurements wait for one another unless --parallel
says otherwise, because the CPU figures are those of the whole machine. A client that
connects and says nothing, or dies at any point, holds nobody up.`,
		Example: `  podlane perf server --lp 4000
  qperf -v SERVER -lp 4000 -ip 4001 tcp_bw tcp_lat udp_bw udp_lat conf`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if help, err := parseServerFlags(cmd, args); help || err != nil {
				return err
			}
			if addr != "" {
				a, err := netip.ParseAddr(addr)
				if err != nil {
					return fmt.Errorf("--addr %s: not an IP address", addr)
				}
				config.Addr = a
			}
			config.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			server, err := qperf.Listen(config)
			if err != nil {
				return err
			}
			config.Log.Info("qperf server: listening", "addr", server.Addr().String())
			return server.Serve(cmd.Context())
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&config.Port, "lp", qperf.DefaultPort, "control port (qperf's -lp)")
	flags.StringVar(&addr, "addr", "", "IP address to listen on (default every address of the machine)")
	flags.IntVar(&config.Parallel, "parallel", 1, "measurements at the same time")
	return cmd
}

// parseServerFlags takes qperf's own spelling -lp too, which pflag would read as -l with the value p.
func parseServerFlags(cmd *cobra.Command, args []string) (help bool, err error) {
	fixed := make([]string, len(args))
	for i, a := range args {
		switch a {
		case "-lp", "-listen_port", "--listen_port":
			a = "--lp"
		}
		fixed[i] = a
	}
	err = cmd.Flags().Parse(fixed)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return true, cmd.Help()
	case err == nil && cmd.Flags().NArg() > 0:
		err = fmt.Errorf("%s: the server takes no arguments", cmd.Flags().Arg(0))
	}
	if err != nil {
		return false, &exitError{code: 2, err: err}
	}
	if on, err := cmd.Flags().GetBool("help"); err == nil && on {
		return true, cmd.Help()
	}
	return false, nil
}

func newPerfClient() *cobra.Command {
	return &cobra.Command{
		Use:   "client [OPTIONS] SERVER [OPTIONS] TEST...",
		Short: "Measure to a qperf server: tcp_bw tcp_lat udp_bw udp_lat conf",
		Long: `Measure to a qperf server, the real qperf 0.4.11 or podlane's own. Options are qperf's: one
dash or two, and each counts for the tests after it. The output has the form of qperf's.

` + qperf.Usage,
		Example: `  podlane perf client SERVER -lp 4000 -ip 4001 -v tcp_bw tcp_lat udp_bw udp_lat conf
  podlane perf client --json -t 500ms --warmup 100ms SERVER tcp_lat`,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, err := qperf.ParseArgs(args)
			if errors.Is(err, qperf.ErrHelp) {
				return cmd.Help()
			}
			if err != nil {
				return &exitError{code: 2, err: err}
			}
			return inv.Run(cmd.Context(), cmd.OutOrStdout())
		},
	}
}
