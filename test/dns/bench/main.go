// Command bench compares podlane dns with CoreDNS 1.15.0 over one kube-apiserver,
// in one run: questions for each second of CPU, latency at a fixed rate, memory.
// It judges nothing.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/podlane/podlane/test/dns/peer"
)

type options struct {
	services, rounds, rate int
	length                 time.Duration
	json                   string
	programs               peer.Programs
}

func main() {
	var o options
	flag.IntVar(&o.services, "services", 10000, "Services, with ten endpoints each")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; the figures are medians over them")
	flag.IntVar(&o.rate, "rate", 5000, "questions a second where latency is measured")
	flag.DurationVar(&o.length, "length", 3*time.Second, "of each measurement")
	flag.StringVar(&o.json, "json", "", "file to write all figures to")
	flag.StringVar(&o.programs.Podlane, "podlane", "", "the program to measure (default: this tree's)")
	flag.StringVar(&o.programs.CoreDNS, "coredns", "", "the CoreDNS to measure (default: the version of go.mod)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, w io.Writer) error {
	dir, err := os.MkdirTemp("", "podlane-bench-dns-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	say("building podlane and CoreDNS")
	if o.programs, err = o.programs.Build(ctx, dir); err != nil {
		return err
	}
	b, err := start(ctx, o, dir)
	if err != nil {
		return err
	}
	defer b.stop()
	if err := b.measure(ctx); err != nil {
		return err
	}
	if o.json != "" {
		text, err := json.MarshalIndent(b.report, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return b.report.print(w)
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench-dns: "+format+"\n", args...)
}

// bench is the running programs and what was measured.
type bench struct {
	options
	api     *peer.API
	servers []*peer.Server
	files   map[string]string // questions, by what they are
	report  report
}

// report is the figures, by server and by what is asked.
type report struct {
	Services int                 `json:"services"`
	Rate     int                 `json:"rate"`
	Figures  []figure            `json:"figures"`
	Memory   map[string][]memory `json:"memory"`
}

// figure is one measurement.
type figure struct {
	Server     string  `json:"server"`
	Questions  string  `json:"questions"`
	Round      int     `json:"round"`
	PerSecond  float64 `json:"per_second"`
	PerCPU     float64 `json:"per_cpu_second"`
	P50, P99   float64 // microseconds at report.Rate
	Lost, Asks int
}

// memory is a server's resident memory in KiB.
type memory struct {
	When     string `json:"when"`
	Resident int    `json:"resident_kib"`
	Highest  int    `json:"highest_kib"`
}

func start(ctx context.Context, o options, dir string) (*bench, error) {
	b := &bench{options: o, files: map[string]string{}, report: report{Services: o.services, Rate: o.rate, Memory: map[string][]memory{}}}
	say("starting kube-apiserver with %d Services", o.services)
	var err error
	if b.api, err = peer.StartAPI(ctx, o.programs, dir); err != nil {
		return nil, err
	}
	objects := peer.Many(o.services)
	if err := b.api.Create(ctx, objects); err != nil {
		b.stop()
		return nil, err
	}
	if err := b.writeQuestions(dir, objects); err != nil {
		b.stop()
		return nil, err
	}
	upstream, err := peer.StartUpstream()
	if err != nil {
		b.stop()
		return nil, err
	}
	setup := peer.Setup{Kubeconfig: b.api.Kubeconfig, Upstream: upstream, Pods: "insecure", Cache: true}
	for _, s := range []struct {
		program string
		start   func(context.Context, string, string, peer.Setup) (*peer.Server, error)
	}{{o.programs.CoreDNS, peer.StartCoreDNS}, {o.programs.Podlane, peer.StartPodlane}} {
		server, err := s.start(ctx, s.program, dir, setup)
		if err != nil {
			b.stop()
			return nil, err
		}
		b.servers = append(b.servers, server)
	}
	return b, nil
}

func (b *bench) stop() {
	for _, s := range b.servers {
		s.Kill()
	}
	b.api.Stop()
}

const outsideNames = 1000

func (b *bench) writeQuestions(dir string, o *peer.Objects) error {
	var cluster, outside []byte
	for i, s := range o.Services {
		if i%10 != 9 { // those with a cluster IP, as nearly all questions are
			cluster = fmt.Appendf(cluster, "%s.svc.cluster.local A\n", s)
		}
	}
	for i := range outsideNames {
		outside = fmt.Appendf(outside, "name-%d.example.com A\n", i)
	}
	for what, text := range map[string][]byte{"cluster": cluster, "outside": outside} {
		b.files[what] = filepath.Join(dir, what)
		if err := os.WriteFile(b.files[what], text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// measure measures the servers in turn, in the other order every second round.
func (b *bench) measure(ctx context.Context) error {
	time.Sleep(2 * time.Second) // what is left of the start
	for _, s := range b.servers {
		b.remember(s, "synced")
		if _, err := b.load(ctx, s, "outside", 0); err != nil { // fills the caches
			return err
		}
	}
	for round := range b.rounds {
		order := slices.Clone(b.servers)
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, what := range []string{"cluster", "outside"} {
			for _, s := range order {
				f, err := b.load(ctx, s, what, round)
				if err != nil {
					return err
				}
				say("round %d: %s: %s: %.0f/s, %.0f for each CPU second, p50 %.0f us, p99 %.0f us, lost %d", round+1, what, s.Name, f.PerSecond, f.PerCPU, f.P50, f.P99, f.Lost)
				b.report.Figures = append(b.report.Figures, f)
			}
		}
	}
	for _, s := range b.servers {
		b.remember(s, "after the load")
	}
	return nil
}

func (r *report) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%d Services x 10 endpoints; medians\tCoreDNS 1.15.0\tpodlane dns\tratio\t\n", r.Services)
	for _, what := range []string{"cluster", "outside"} {
		for _, c := range []struct {
			name string
			of   func(figure) float64
		}{
			{"questions a CPU second", func(f figure) float64 { return f.PerCPU }},
			{"questions a second, both cores shared with dnsperf", func(f figure) float64 { return f.PerSecond }},
			{fmt.Sprintf("p50 at %d/s, us", r.Rate), func(f figure) float64 { return f.P50 }},
			{fmt.Sprintf("p99 at %d/s, us", r.Rate), func(f figure) float64 { return f.P99 }},
			{"lost", func(f figure) float64 { return float64(f.Lost) }},
		} {
			theirs, ours := r.median("coredns", what, c.of), r.median("podlane", what, c.of)
			fmt.Fprintf(t, "%s names: %s\t%.0f\t%.0f\t%s\t\n", what, c.name, theirs, ours, ratio(ours, theirs))
		}
	}
	for i, m := range r.Memory["coredns"] {
		ours := r.Memory["podlane"][i]
		fmt.Fprintf(t, "resident memory %s, MiB\t%.1f\t%.1f\t%s\t\n", m.When, float64(m.Resident)/1024, float64(ours.Resident)/1024, ratio(float64(ours.Resident), float64(m.Resident)))
		fmt.Fprintf(t, "at most until then, MiB\t%.1f\t%.1f\t%s\t\n", float64(m.Highest)/1024, float64(ours.Highest)/1024, ratio(float64(ours.Highest), float64(m.Highest)))
	}
	return t.Flush()
}

func ratio(ours, theirs float64) string {
	if theirs == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", ours/theirs)
}

func (r *report) median(server, what string, of func(figure) float64) float64 {
	var v []float64
	for _, f := range r.Figures {
		if f.Server == server && f.Questions == what {
			v = append(v, of(f))
		}
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}
