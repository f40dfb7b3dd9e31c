package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/report"
)

// measure runs qperf's tests over the three paths in interleaved rounds. The
// server of the path from node to node is a process on the second node.
func (d *demo) measure(ctx context.Context) error {
	d.title("What it costs: TCP and UDP, bandwidth and latency, over three paths in interleaved rounds.")
	self, err := program()
	if err != nil {
		return err
	}
	serving, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go d.serve(serving, self, ended)
	defer func() { stop(); <-ended }()
	paths, err := d.paths()
	if err != nil {
		return err
	}
	d.command("lab", "exec", paths[2].from, "--", "podlane", "perf", "client", "--lp", "4000", "--ip", "4001", "-v", paths[2].Address, "tcp_bw", "tcp_lat", "udp_bw", "udp_lat", "conf")
	if err := d.waitServer(ctx, self); err != nil {
		return err
	}
	c := perf.Config{Rounds: d.Rounds, Duration: d.Duration, Binary: self, Progress: d.tell()}
	for _, p := range paths {
		c.Paths = append(c.Paths, p.Path)
	}
	d.evaluation, err = perf.Evaluate(ctx, c)
	if err != nil {
		return err
	}
	d.result.Evaluation = d.evaluation.Rows
	fmt.Fprintln(d.Story)
	return report.Table(d.Story, d.evaluation)
}

// path is a measured path and where its client is.
type path struct {
	perf.Path
	from string
}

func (d *demo) paths() ([]path, error) {
	server := d.serviceStatus(perfNamespace, "qperf-server")
	var pod *lab.PodStatus
	for i, p := range d.status.Pods {
		if p.Namespace == perfNamespace && p.Labels["app"] == "qperf-server" {
			pod = &d.status.Pods[i]
		}
	}
	if server == nil || len(server.ClusterIPs) == 0 || pod == nil || len(pod.IPs) == 0 {
		return nil, errors.New("the lab has no qperf-server to measure with")
	}
	node := ""
	for _, n := range d.status.Nodes {
		if n.Name == d.scene.second && len(n.Addresses) > 0 {
			node = n.Addresses[0]
		}
	}
	one := func(name, from, address string) path {
		return path{perf.Path{Name: name, Address: address, Exec: d.execIn(from)}, from}
	}
	return []path{
		one(perf.NodeNode, "node/"+d.scene.first, node),
		one(perf.PodPod, from, pod.IPs[0]),
		one(perf.PodServicePod, from, server.ClusterIPs[0]),
	}, nil
}

func (d *demo) execIn(target string) perf.Exec {
	return func(ctx context.Context, argv []string) ([]byte, error) {
		out, err := d.client.Output(ctx, target, argv...)
		return []byte(out), err
	}
}

// serve runs the server of the path from node to node until ctx ends.
func (d *demo) serve(ctx context.Context, self string, ended chan<- struct{}) {
	defer close(ended)
	_, _ = d.client.Exec(ctx, "node/"+d.scene.second, []string{self, "perf", "server", "--lp", "4000"}, lab.Stdio{})
}

// waitServer waits until that server answers.
func (d *demo) waitServer(ctx context.Context, self string) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		_, err := d.client.Output(ctx, "node/"+d.scene.second, self, "perf", "client", "--lp", "4000", "localhost", "conf")
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// tell prints how far the evaluation is, every few seconds.
func (d *demo) tell() func(perf.Progress) {
	last := time.Now()
	return func(p perf.Progress) {
		if p.Done < p.Total && time.Since(last) < 3*time.Second {
			return
		}
		last = time.Now()
		d.progress(fmt.Sprintf("measured %d of %d (round %d, %s, %s)", p.Done, p.Total, p.Cell.Round, p.Cell.Path, p.Cell.Result.Test))
	}
}

// report writes the HTML report, whole or not at all.
func (d *demo) report(context.Context) error {
	if d.Report == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(d.Report), ".podlane-report-*")
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	defer os.Remove(f.Name())
	err = report.HTML(f, d.evaluation, report.About{
		Date: d.began.Format(time.RFC3339), Version: d.Version, Commands: []string{d.Command},
		Facts: []report.Fact{{Name: "overlay", Value: d.status.Overlay}, {Name: "nodes", Value: "network namespaces on one machine, joined by a bridge"}},
	})
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return os.Rename(f.Name(), d.Report)
}
