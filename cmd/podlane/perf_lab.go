package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/kube"
	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/rig"
)

// perfFlags are what every evaluation can be told.
type perfFlags struct {
	set    *pflag.FlagSet
	tests  []string
	width  string
	mbit   float64
	gentle bool
	out    perfOutputs
	config perf.Config
}

func (p *perfFlags) flags(f *pflag.FlagSet) {
	c := &p.config
	p.set = f
	f.StringSliceVar(&p.tests, "tests", []string{"tcp_bw", "tcp_lat", "udp_bw", "udp_lat"}, "what to measure: tcp_bw, tcp_streams, tcp_lat, tcp_crr, udp_bw, udp_max, udp_pps, udp_lat, udp_open, or all")
	f.DurationVar(&c.Budget, "budget", 5*time.Minute, "time to spend at most")
	f.StringVar(&p.width, "width", "4%", "stop earlier when every ratio's interval is no wider than this")
	f.IntVar(&c.Rounds, "rounds", 0, "rounds at most (0: as many as the budget allows)")
	f.DurationVar(&c.Duration, "duration", 200*time.Millisecond, "of one measurement")
	f.DurationVar(&c.Warmup, "warmup", 50*time.Millisecond, "traffic before each measurement's clock")
	f.IntVar(&c.Streams, "streams", 4, "of tcp_streams")
	f.Float64Var(&c.Rate, "rate", 1000, "messages a second of udp_open")
	f.Float64Var(&c.MaxRate, "max-rate", 0, "datagrams a second of udp_bw, udp_pps and udp_max at most (0: as many as can be sent)")
	f.Float64Var(&p.mbit, "max-bandwidth", 0, "Mbit/s of tcp_bw and tcp_streams at most, sent evenly (0: as many as the network carries)")
	f.Uint64Var(&c.Seed, "seed", 0, "of the order of measurements (0: a new one)")
	f.BoolVar(&p.gentle, "gentle", false, "for a cluster in use: latency only unless --tests says otherwise, bandwidth capped at 100 Mbit/s, datagrams at 1,000 a second, udp_open at 200, a minute at most")
	p.out.flags(f)
}

// resolve makes the config out of the flags.
func (p *perfFlags) resolve() (perf.Config, error) {
	c := p.config
	var err error
	if c.Width, err = parsePart(p.width); err != nil {
		return c, fmt.Errorf("--width %s: %w", p.width, err)
	}
	if p.gentle {
		c.MaxRate, c.Budget, c.Rate = capped(c.MaxRate, 1000), capped(c.Budget, time.Minute), capped(c.Rate, 200)
		p.mbit = capped(p.mbit, 100)
		if !p.set.Changed("tests") {
			p.tests = []string{"tcp_lat", "udp_lat", "udp_open"}
		}
	}
	c.Pace = p.mbit * 1e6 / 8
	for _, name := range p.tests {
		if name == "all" {
			c.Tests = append(c.Tests, qperf.AllTests...)
			continue
		}
		t, err := qperf.ParseTest(name)
		if err == nil && t.Unit() == "" {
			err = errors.New("has no figure to compare")
		}
		if err != nil {
			return c, fmt.Errorf("--tests %s: %w", name, err)
		}
		c.Tests = append(c.Tests, t)
	}
	for i, t := range c.Tests {
		switch {
		case slices.Contains(c.Tests[:i], t):
			return c, fmt.Errorf("--tests: %s twice", t)
		case p.gentle && t == qperf.TCPConnect:
			return c, fmt.Errorf("--tests %s: makes as many connections as the network can, which --gentle is not to", t)
		}
	}
	return c, c.Check()
}

// capped is v, of which 0 is no cap, with a cap.
func capped[T float64 | time.Duration](v, most T) T {
	if v == 0 {
		return most
	}
	return min(v, most)
}

// finish writes the outputs and gives the exit status: what is invalid is written too, marked so.
func (p *perfFlags) finish(cmd *cobra.Command, e *perf.Evaluation, err error) error {
	if e != nil {
		e.Notes = append(e.Notes, perf.Note{Name: "podlane", Value: versionText()})
		e.Command = append(e.Command, strings.Join(append([]string{"podlane"}, os.Args[min(1, len(os.Args)):]...), " "))
		if err == nil || e.Invalid != "" && p.out.json != "" {
			err = errors.Join(err, p.out.write(cmd, e))
		}
	}
	switch {
	case cmd.Context().Err() != nil:
		return &exitError{130, err}
	case err != nil:
		return &exitError{statusInvalid, err}
	}
	return nil
}

// tellProgress prints how far an evaluation is, every few seconds.
func tellProgress(w io.Writer) func(perf.Progress) {
	last := time.Now()
	return func(p perf.Progress) {
		if time.Since(last) < 5*time.Second {
			return
		}
		last = time.Now()
		fmt.Fprintf(w, "podlane: %s: round %d, %d measurements\n", p.Elapsed.Round(time.Second), p.Cell.Round, p.Done)
	}
}

func newLabPerf(name *string) *cobra.Command {
	var p perfFlags
	var o rig.Options
	cmd := &cobra.Command{
		Use:   "perf",
		Short: "Measure what each part of the way costs: veth and routing, encapsulation, Service translation",
		Long: `Bring up a lab for each overlay, all at once, and measure node to node, pod to pod, and pod to Service to pod in interleaved rounds, with
the CPU that each costs. Every measurement is checked to have taken the path it is named after, by the addresses that the server saw and by podlane's own
counters; one that did not makes the run invalid (exit status 3). Nothing stays behind, however it ends.`,
		Example: `  podlane lab perf --html perf.html
  podlane lab perf --overlay vxlan --tests all --budget 10m --json run.json
  podlane lab perf --overlay direct --proxy-backend nftables,iptables --tests tcp_lat,tcp_crr
  podlane lab perf --overlay direct --services 0,1000,10000 --tests tcp_lat,tcp_crr
  podlane lab perf --paths node-pod,same-node,hairpin,node-port --ip-family ipv6`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if o.Config, err = p.resolve(); err != nil {
				return &exitError{statusInvalid, err}
			}
			o.Name = fmt.Sprintf("%s-perf-%d", *name, os.Getpid())
			o.Config.Progress = tellProgress(cmd.ErrOrStderr())
			o.Progress = func(text string) { fmt.Fprintln(cmd.ErrOrStderr(), "podlane:", text) }
			e, err := guarded(cmd.Context(), o)
			return p.finish(cmd, e, err)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.Overlays, "overlay", []string{"direct", "vxlan"}, "how packets reach other nodes' pods; several are measured against one another: "+rig.Layouts)
	f.StringSliceVar(&o.Backends, "proxy-backend", nil, "how Services are translated: "+strings.Join(rig.Backends, ", ")+"; several are measured against one another (default: the agent's choice)")
	f.IntSliceVar(&o.Services, "services", nil, "Services beside the one that is measured; several numbers are measured against one another (default 0)")
	f.StringVar(&o.Families, "ip-family", "ipv4", "ipv4 or ipv6")
	f.StringSliceVar(&o.Further, "paths", nil, "further paths: "+strings.Join(rig.Further, ", "))
	p.flags(f)
	return cmd
}

// guarded is rig.Run with a guard beside it.
func guarded(ctx context.Context, o rig.Options) (*perf.Evaluation, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	stop, err := rig.StartGuard(append([]string{self, "perf", "guard"}, o.Names()...))
	if err != nil {
		return nil, err
	}
	defer stop()
	return rig.Run(ctx, o)
}

// newPerfGuard is the process that outlives a killed `lab perf` or `perf run`.
func newPerfGuard() *cobra.Command {
	var o kube.Options
	var run string
	cmd := &cobra.Command{
		Use: "guard LAB...", Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if run == "" {
				return rig.Guard(context.Background(), os.Stdin, args)
			}
			o.Progress = func(string) {}
			return kube.Guard(context.Background(), os.Stdin, o, run)
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "a run's id in a cluster, in place of labs")
	clusterFlags(cmd, &o)
	return cmd
}
