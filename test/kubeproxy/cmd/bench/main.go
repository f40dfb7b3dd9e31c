// Command bench measures the service proxy beside the real kube-proxy: Podlane's
// agent, and kube-proxy in its nftables and its iptables mode, one after the other
// on the same machine, fed by the same API (a stand-in, internal/api) and timed
// over the same spans, from outside. It prints a table, and JSON to a file.
//
// It needs root, nft, iptables and ip, and nothing else running on the machine.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/podlane/podlane/test/kubeproxy/internal/node"
)

type options struct {
	sizes, proxies, out           string
	budget, churn, total          time.Duration
	mine, theirs, connections     int
	churnAt, latencyFew, latencyN int
	deadline                      time.Time
	programs                      node.Programs
	dir                           string
}

// forLatency is what the connections at the end take of the whole run's time.
const forLatency = 90 * time.Second

func main() {
	var o options
	flag.StringVar(&o.sizes, "sizes", "1000x10,10000x10,30000x10,5000x50", "Services x endpoints of each")
	flag.StringVar(&o.proxies, "proxies", "podlane,nftables,iptables", "podlane, and modes of kube-proxy")
	flag.DurationVar(&o.budget, "budget", 120*time.Second, "what one figure may take")
	flag.DurationVar(&o.churn, "churn", time.Minute, "how long 1 % of the Services change each second; 0 is not at all")
	flag.IntVar(&o.churnAt, "churn-at", 10000, "number of Services at which that is measured; 0 is all")
	flag.DurationVar(&o.total, "total", 30*time.Minute, "what the whole run may take")
	flag.IntVar(&o.mine, "samples", 1000, "single changes of Podlane")
	flag.IntVar(&o.theirs, "kube-proxy-samples", 10, "single changes of kube-proxy, at least")
	flag.IntVar(&o.latencyFew, "latency-few", 10, "Services of the smaller cluster where connections are timed")
	flag.IntVar(&o.latencyN, "latency-many", 30000, "Services of the bigger one; 0 is no timing of connections")
	flag.IntVar(&o.connections, "connections", 10000, "connections timed in each")
	flag.StringVar(&o.out, "json", "", "file for the figures as JSON")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// result is all figures of a run.
type result struct {
	Machine    map[string]string `json:"machine"`
	API        string            `json:"api"`
	Cells      []*cell           `json:"cells"`
	Latency    []latency         `json:"firstConnectionLatency"`
	Started    time.Time         `json:"started"`
	TookSecond float64           `json:"tookSeconds"`
}

func (o options) run(ctx context.Context) (err error) {
	if o.programs, err = node.Build(ctx, os.Stderr); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp("", "podlane-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	r := result{Machine: machine(), Started: time.Now(),
		API: "stand-in for kube-apiserver (test/kubeproxy/internal/api): protobuf, streamed lists, no etcd"}
	o.deadline = r.Started.Add(o.total - forLatency)
	for _, size := range strings.Split(o.sizes, ",") {
		services, endpoints, err := parseSize(size)
		if err != nil {
			return err
		}
		for _, proxy := range strings.Split(o.proxies, ",") {
			if ctx.Err() != nil || time.Now().After(o.deadline) {
				fmt.Fprintln(os.Stderr, "out of time before", size, proxy)
				continue
			}
			c := &cell{Proxy: proxy, Services: services, Endpoints: endpoints}
			fmt.Fprintf(os.Stderr, "%s: %s\n", size, proxy)
			if small := r.unfinished(c); small != nil {
				c.Cold.Not = fmt.Sprintf("not tried, as %d x %d was %s", small.Services, small.Endpoints, small.Cold.Not)
				c.Note = c.Cold.Not
			} else if err := o.measure(ctx, c); err != nil {
				c.Note = err.Error()
				fmt.Fprintln(os.Stderr, "  ", err)
			}
			r.Cells = append(r.Cells, c)
		}
	}
	if o.latencyN > 0 && ctx.Err() == nil {
		if r.Latency, err = o.latencies(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "latency:", err)
		}
	}
	r.TookSecond = time.Since(r.Started).Seconds()
	r.print(os.Stdout)
	if o.out == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, append(data, '\n'), 0o644)
}

// unfinished gives a cell of the same proxy with fewer endpoints that was not
// programmed within its budget: a bigger one would not be either.
func (r *result) unfinished(c *cell) *cell {
	for _, o := range r.Cells {
		if o.Proxy == c.Proxy && strings.HasPrefix(o.Cold.Not, "not finished") && o.Services*o.Endpoints < c.Services*c.Endpoints {
			return o
		}
	}
	return nil
}

func parseSize(s string) (services, endpoints int, err error) {
	a, b, ok := strings.Cut(s, "x")
	if services, err = strconv.Atoi(a); ok && err == nil {
		endpoints, err = strconv.Atoi(b)
	}
	if !ok || err != nil {
		return 0, 0, fmt.Errorf("--sizes: %q: want SERVICESxENDPOINTS", s)
	}
	return services, endpoints, nil
}

func machine() map[string]string {
	say := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "?"
		}
		return strings.TrimSpace(strings.SplitN(string(out), "\n", 2)[0])
	}
	load, _ := os.ReadFile("/proc/loadavg")
	return map[string]string{
		"kernel": say("uname", "-r"), "cores": strconv.Itoa(runtime.NumCPU()), "nft": say("nft", "--version"),
		"iptables": say("iptables", "--version"), "load": strings.TrimSpace(string(load)), "kube-proxy": node.Kubernetes,
		"podlane": say("git", "-C", filepath.Dir(must(os.Getwd())), "describe", "--always", "--dirty"),
	}
}

func must(s string, _ error) string { return s }
