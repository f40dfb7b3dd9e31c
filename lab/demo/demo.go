// Package demo is the scenario of `podlane lab demo`: a two-node cluster network
// comes up, its Services are reached in every way, the agents are killed, and each
// path is measured. It decides nothing about the network, and nothing it prints is
// known beforehand: every line is what a command in the lab gave.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/perf"
)

// Options say how the demo runs.
type Options struct {
	Name         string        // the lab's
	Overlay      string        // auto, vxlan, direct
	ProxyBackend string        // auto, nftables, iptables
	FastPath     string        // auto, on, off
	Objects      *file.Objects // nil: the built-in nginx scenario
	Rounds       int           // of the evaluation; 0: 5
	Duration     time.Duration // of one cell; 0: 500 ms
	Report       string        // the HTML report's file
	Version      string
	Command      string    // that repeats the demo, for the report
	Story        io.Writer // the steps, for people; nil: none
	Progress     io.Writer // what goes on in long steps
}

// Result is the document that `--json` prints.
type Result struct {
	Nodes        []Node       `json:"nodes"`
	Access       []Access     `json:"access"`
	AgentStopped AgentStopped `json:"agent_stopped"`
	Evaluation   []perf.Row   `json:"evaluation"`
	Overlay      string       `json:"overlay"`
	Seconds      float64      `json:"seconds"`
}

// Node is a node of the lab.
type Node struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	PodCIDRs  []string `json:"pod_cidrs"`
}

// Access is one way of reaching a Service or a pod.
type Access struct {
	Name     string         `json:"name"`
	From     string         `json:"from"`
	To       string         `json:"to"`
	OK       bool           `json:"ok"` // no request failed
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	ServedBy map[string]int `json:"served_by"`
	Clients  []string       `json:"clients"` // the source addresses that the pods saw
	Errors   []string       `json:"errors,omitempty"`
}

// AgentStopped is what happened while no agent ran.
type AgentStopped struct {
	Requests int `json:"requests"`
	Failed   int `json:"failed"`
	// Counted is by how much the rules' own counters rose.
	Counted  uint64         `json:"counted"`
	ServedBy map[string]int `json:"served_by"`
}

// ErrNotOK says that some access failed; the Result tells which.
var ErrNotOK = errors.New("not every request was answered")

// Run plays the scenario in a lab of its own, which is gone afterwards. The Result
// holds what was reached, also with an error.
func Run(ctx context.Context, o Options) (_ *Result, err error) {
	d := &demo{Options: o, began: time.Now(), result: &Result{Access: []Access{}, Evaluation: []perf.Row{}}}
	if d.Story == nil {
		d.Story = io.Discard
	}
	if err := d.plan(); err != nil {
		return d.result, err
	}
	if err := d.up(ctx); err != nil {
		return d.result, err
	}
	defer func() { err = errors.Join(err, d.client.Down(context.WithoutCancel(ctx))) }()
	for _, step := range []func(context.Context) error{d.reach, d.withoutAgents, d.measure, d.report} {
		if err := step(ctx); err != nil {
			return d.result, err
		}
	}
	d.result.Seconds = time.Since(d.began).Seconds()
	d.end()
	return d.result, d.verdict()
}

// demo is one run.
type demo struct {
	Options
	began      time.Time
	steps      int
	scene      scene
	client     *lab.Client
	status     *lab.Status
	result     *Result
	evaluation *perf.Evaluation
}

func (d *demo) plan() (err error) {
	d.scene, err = newScene(d.Objects)
	return err
}

// title begins a step.
func (d *demo) title(format string, args ...any) {
	d.steps++
	fmt.Fprintf(d.Story, "\n%d. %s\n", d.steps, fmt.Sprintf(format, args...))
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.Story, "   %s\n", fmt.Sprintf(format, args...))
}

// command shows what one could type oneself.
func (d *demo) command(args ...string) {
	fmt.Fprintf(d.Story, "   $ podlane %s\n", strings.Join(args, " "))
}

func (d *demo) progress(text string) {
	if d.Progress != nil {
		fmt.Fprintln(d.Progress, "podlane:", text)
	}
}

func (d *demo) up(ctx context.Context) (err error) {
	d.title("A cluster of %d nodes, each a network namespace with an agent of its own; a container is a process.", d.scene.nodes)
	d.command("lab", "up", "--overlay", d.Overlay, "-f", d.scene.source)
	d.client, err = lab.Up(ctx, lab.Options{
		Name: d.Name, Nodes: d.scene.nodes, Overlay: d.Overlay, ProxyBackend: d.ProxyBackend, FastPath: d.FastPath, Objects: d.scene.objects, Progress: d.progress,
	})
	var problems *lab.ProblemsError
	if errors.As(err, &problems) {
		for _, line := range problems.Lines {
			d.progress(line)
		}
		err = nil
	}
	if err != nil {
		if d.client != nil {
			err = errors.Join(err, d.client.Down(context.WithoutCancel(ctx)))
		}
		return err
	}
	if d.status, err = d.client.Status(ctx); err != nil {
		return errors.Join(err, d.client.Down(context.WithoutCancel(ctx)))
	}
	d.result.Overlay = d.status.Overlay
	d.introduce()
	return nil
}

func (d *demo) introduce() {
	for _, n := range d.status.Nodes {
		d.result.Nodes = append(d.result.Nodes, Node{n.Name, n.Addresses, n.PodCIDRs})
		d.say("node %s: address %s, pods %s", n.Name, strings.Join(n.Addresses, " "), strings.Join(n.PodCIDRs, " "))
	}
	for _, p := range d.status.Pods {
		if !d.scene.ours(p.Namespace) {
			d.say("pod %s/%s on %s: %s (%s)", p.Namespace, p.Name, p.Node, strings.Join(p.IPs, " "), p.Containers[0].Runs)
		}
	}
	for _, s := range d.status.Services {
		if !d.scene.ours(s.Namespace) {
			d.say("Service %s/%s: %s, ports %s, %d endpoints", s.Namespace, s.Name, strings.Join(s.ClusterIPs, " "), strings.Join(s.Ports, " "), s.Endpoints)
		}
	}
}

func (d *demo) verdict() error {
	for _, a := range d.result.Access {
		if !a.OK {
			return fmt.Errorf("%w: %s to %s: %d of %d failed", ErrNotOK, a.Name, a.To, a.Failed, a.Requests)
		}
	}
	if s := d.result.AgentStopped; s.Failed > 0 {
		return fmt.Errorf("%w: with the agents killed %d of %d failed", ErrNotOK, s.Failed, s.Requests)
	}
	return nil
}

func (d *demo) end() {
	d.say("")
	if d.Report != "" {
		d.say("report: %s", d.Report)
	}
	d.say("took %.0f s; the lab is gone. One to keep: podlane lab up -f %s", d.result.Seconds, d.scene.source)
}

// program is the running binary, which is on every "machine" of the lab.
func program() (string, error) { return os.Executable() }
