package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/explain/observe"
	"github.com/podlane/podlane/kernel/nft"
)

// newObserve is what explain --verify and doctor run inside a node's or pod's
// namespace. Every part prints one JSON document.
func newObserve() *cobra.Command {
	cmd := &cobra.Command{Use: "observe", Hidden: true, Short: "Look at this namespace for `podlane explain --verify` and `podlane doctor`", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(newObserveNode(), newObserveTrace(), newObserveProbe(), newObserveRoute(), newObservePort(), newObserveCounters(), newObserveExam(), newObserveFeatures(), newObserveFlows(), newObserveTracing())
	return cmd
}

type nodeFlags struct {
	node, manifests, runDir, stateDir string
	overlayFlags
	// agent: the node's agent knows all of these, and looks itself.
	agent bool
}

func (f *nodeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.node, "node", "", "the node's name")
	fl.StringVar(&f.manifests, "manifests", "", "folder with the cluster's state")
	f.overlayFlags.add(fl, "")
	fl.StringVar(&f.runDir, "run-dir", "/run/podlane", "folder of the agent's socket")
	fl.StringVar(&f.stateDir, "state-dir", "/var/lib/podlane", "folder of the allocation record")
	fl.BoolVar(&f.agent, "agent", false, "let the agent look")
}

func (f *nodeFlags) socket() string { return filepath.Join(f.runDir, "agent.sock") }

func (f *nodeFlags) read() (observe.Node, error) {
	o, err := f.overlayFlags.config()
	if err != nil {
		return observe.Node{}, err
	}
	objects, _, err := file.Read(f.manifests)
	if err != nil {
		return observe.Node{}, err
	}
	return observe.Node{Name: f.node, Snapshot: objects.Snapshot(""), Overlay: o, RunDir: f.runDir, StateDir: f.stateDir}, nil
}

func newObserveNode() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{Use: "node", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		report := &observe.Report{}
		if f.agent {
			if err := askAgent(f.socket(), agent.VerbReport, nil, report); err != nil {
				return err
			}
			return printJSON(cmd.OutOrStdout(), report)
		}
		n, err := f.read()
		if err != nil {
			return err
		}
		if report, _, err = observe.Look(n); err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), report)
	}}
	f.add(cmd)
	return cmd
}

func newObserveTrace() *cobra.Command {
	var port uint16
	var protocol string
	var v6, untilEOF bool
	var timeout time.Duration
	cmd := &cobra.Command{Use: "trace", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(context.WithoutCancel(cmd.Context()), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		if untilEOF {
			go func() { _, _ = io.Copy(io.Discard, cmd.InOrStdin()); cancel() }()
		}
		t, err := observe.StartTrace(protocols[strings.ToLower(protocol)], port, v6)
		if err != nil {
			return err
		}
		s := t.Collect(ctx)
		if err := t.Stop(); err != nil {
			s.Problem = err.Error()
		}
		return printJSON(cmd.OutOrStdout(), s)
	}}
	fl := cmd.Flags()
	fl.Uint16Var(&port, "port", 0, "the client's port")
	fl.StringVar(&protocol, "protocol", "tcp", "tcp, udp")
	fl.BoolVarP(&v6, "ipv6", "6", false, "IPv6")
	fl.DurationVar(&timeout, "timeout", 5*time.Second, "the longest time")
	fl.BoolVar(&untilEOF, "until-eof", false, "end when standard input does, as well as by SIGINT")
	return cmd
}

func newObserveProbe() *cobra.Command {
	var p observe.Probe
	var protocol, result string
	cmd := &cobra.Command{Use: "probe HOST:PORT", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		p.Protocol, p.To = protocols[strings.ToLower(protocol)], args[0]
		met := p.Run(cmd.Context())
		if result == "" {
			return printJSON(cmd.OutOrStdout(), met)
		}
		text, err := json.Marshal(met)
		if err != nil {
			return err
		}
		return os.WriteFile(result, text, 0o644)
	}}
	fl := cmd.Flags()
	fl.Uint16Var(&p.Port, "port", 0, "the source port")
	fl.StringVar(&protocol, "protocol", "tcp", "tcp, udp")
	fl.DurationVar(&p.Timeout, "timeout", 2*time.Second, "how long to wait for an answer")
	fl.StringVar(&result, "result", "", "write what was met to this file")
	return cmd
}

func newObserveRoute() *cobra.Command {
	return &cobra.Command{Use: "route ADDRESS...", Args: cobra.MinimumNArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		list := []observe.Decision{}
		for _, a := range args {
			dst, err := netip.ParseAddr(a)
			if err != nil {
				return err
			}
			list = append(list, observe.Decide(dst))
		}
		return printJSON(cmd.OutOrStdout(), list)
	}}
}

func newObservePort() *cobra.Command {
	return &cobra.Command{Use: "port", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		port, err := observe.FreePort()
		if err != nil {
			return fmt.Errorf("a free port: %w", err)
		}
		return printJSON(cmd.OutOrStdout(), port)
	}}
}

func newObserveCounters() *cobra.Command {
	return &cobra.Command{Use: "counters", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		conn, err := nft.Dial(0)
		if err != nil {
			return err
		}
		defer conn.Close()
		counts, _, err := readCounts(conn, bpfDir())
		if err != nil {
			return err
		}
		list := []counterJSON{}
		for _, c := range counts {
			list = append(list, counterJSON{c.Service, c.Protocol.String(), c.Frontend.String(), c.New})
		}
		return printJSON(cmd.OutOrStdout(), list)
	}}
}

func newObserveExam() *cobra.Command {
	var f nodeFlags
	cmd := &cobra.Command{Use: "exam", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		exam, err := f.examine()
		if err != nil {
			return err
		}
		exam.Try(cmd.Context())
		return printJSON(cmd.OutOrStdout(), exam)
	}}
	f.add(cmd)
	return cmd
}

func (f *nodeFlags) examine() (*observe.Exam, error) {
	if f.agent {
		x := &agent.Examination{}
		err := askAgent(f.socket(), agent.VerbDoctor, nil, x)
		return x.Exam, err
	}
	n, err := f.read()
	if err != nil {
		return nil, err
	}
	exam, _, err := observe.Examine(n)
	return exam, err
}

func newObserveFeatures() *cobra.Command {
	return &cobra.Command{Use: "features", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return printJSON(cmd.OutOrStdout(), observe.Features())
	}}
}

func newObserveFlows() *cobra.Command {
	return &cobra.Command{Use: "flows", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		flows, err := observe.AllFlows()
		if err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), flows)
	}}
}

// newObserveTracing waits for a trace of another process.
func newObserveTracing() *cobra.Command {
	var port uint16
	var v6 bool
	cmd := &cobra.Command{Use: "tracing", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
		defer cancel()
		is, err := observe.Tracing(ctx, port, v6)
		if err != nil {
			return err
		}
		return printJSON(cmd.OutOrStdout(), is)
	}}
	cmd.Flags().Uint16Var(&port, "port", 0, "the client's port")
	cmd.Flags().BoolVarP(&v6, "ipv6", "6", false, "IPv6")
	return cmd
}
