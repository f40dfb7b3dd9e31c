package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/podlane/podlane/test/kubeproxy/internal/node"
)

// cell is one proxy at one size. Times are in seconds; a negative one is not
// measured.
type cell struct {
	Proxy     string `json:"proxy"`
	Services  int    `json:"services"`
	Endpoints int    `json:"endpointsOfEach"`
	// Cold is from when the proxy says that its informers are synced, to the kernel's
	// last acknowledgement, from an empty kernel; Lists begins when the API has handed
	// out the last object, so that it has the end of the decoding too. Restart is, with
	// the state present, from there to when the proxy has nothing left to do.
	Cold    figure `json:"cold"`
	Lists   figure `json:"coldFromLists"`
	Restart figure `json:"restart"`
	// Endpoint and Service are single changes, from the API's event to the kernel's
	// acknowledgement.
	Endpoint samples `json:"endpointChanged"`
	Service  samples `json:"serviceAdded"`
	// Churn is the processor time per second while 1 % of the Services have an
	// endpoint changed each second, of the proxy and the programs it runs.
	Churn figure `json:"churnCores"`
	// Peak is the most resident memory (VmHWM) of the proxy, a list of everything
	// anew included, without the programs it runs.
	Peak float64 `json:"peakBytes"`
	Note string  `json:"note,omitempty"`
}

// figure is a number, or why there is none.
type figure struct {
	Value float64 `json:"value"`
	Not   string  `json:"not,omitempty"`
}

type samples struct {
	N   int     `json:"n"`
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
	Not string  `json:"not,omitempty"`
}

func summary(ts []time.Duration) samples {
	if len(ts) == 0 {
		return samples{Not: "not measured"}
	}
	slices.Sort(ts)
	at := func(q float64) float64 { return ts[min(int(q*float64(len(ts))), len(ts)-1)].Seconds() }
	return samples{N: len(ts), P50: at(0.5), P99: at(0.99), Max: ts[len(ts)-1].Seconds()}
}

// run is a cell under measurement.
type run struct {
	options
	*cell
	node    *node.Node
	process *node.Process
	// quiet is how long a proxy does nothing when it is done: kube-proxy's two
	// families follow each other.
	quiet, pause time.Duration
	ours         bool
}

func (o options) measure(ctx context.Context, c *cell) error {
	n, err := node.New(filepath.Join(o.dir, fmt.Sprintf("%s-%d-%d", c.Proxy, c.Services, c.Endpoints)))
	if err != nil {
		return err
	}
	defer n.Close()
	ctx, cancel := context.WithDeadline(ctx, o.deadline)
	defer cancel()
	r := &run{options: o, cell: c, node: n, quiet: 500 * time.Millisecond, pause: 1200 * time.Millisecond}
	if c.Proxy == "podlane" {
		r.ours, r.quiet, r.pause = true, 20*time.Millisecond, 2*time.Millisecond
	}
	n.Fill(c.Services, c.Endpoints)
	if err := r.cold(ctx); err != nil {
		return err
	}
	defer func() { r.process.Kill() }()
	if c.Cold.Not != "" {
		c.Peak = float64(r.process.Peak())
		return nil
	}
	c.Endpoint = r.changes(ctx, r.changeEndpoint)
	c.Service = r.changes(ctx, r.addService)
	if o.churn > 0 && (o.churnAt == 0 || o.churnAt == c.Services) {
		c.Churn = r.churned(ctx)
	} else {
		c.Churn.Not = "not measured at this size"
	}
	r.resync(ctx)
	c.Peak = float64(r.process.Peak())
	return r.restart(ctx)
}

func (r *run) start() (err error) {
	if r.ours {
		r.process, err = r.node.Agent(r.programs, "--service-proxy", "on")
	} else {
		r.process, err = r.node.KubeProxy(r.programs, r.Proxy)
	}
	return err
}

// cold starts the proxy in an empty kernel.
func (r *run) cold(ctx context.Context) error {
	before := r.node.Generation()
	if err := r.start(); err != nil {
		return err
	}
	listed, err := r.listed(ctx)
	if err != nil {
		r.process.Kill()
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, listed.Add(r.budget))
	defer cancel()
	changed, _, ok := r.node.Quiet(ctx, r.process, before, 3*time.Second)
	for ok && !r.synced(listed) { // it waits for something
		changed, _, ok = r.node.Quiet(ctx, r.process, before, 3*time.Second)
	}
	switch {
	case r.process.Ended() != nil:
		return r.process.Ended()
	case !ok && time.Now().After(r.deadline):
		return errors.New("the time of the whole run was over")
	case !ok:
		r.Cold.Not = fmt.Sprintf("not finished after %s", r.budget)
	case changed.IsZero():
		return errors.New("the kernel's rules did not change")
	default:
		r.Lists.Value = changed.Sub(listed).Seconds()
		at, err := r.process.Synced()
		if err != nil {
			return err
		}
		r.Cold.Value = changed.Sub(at).Seconds()
	}
	r.say("cold", r.Cold)
	return nil
}

// synced says that the proxy itself says that it has brought all to the kernel.
func (r *run) synced(since time.Time) bool {
	text, err := r.node.Get("http://127.0.0.1:10249/metrics")
	if err != nil {
		return false
	}
	_, rest, found := strings.Cut(text, `kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"} `)
	number, _, _ := strings.Cut(rest, "\n")
	at, err := strconv.ParseFloat(number, 64)
	return found && err == nil && at > float64(since.UnixMilli())/1000
}

// listed waits until the API has handed out all objects.
func (r *run) listed(ctx context.Context) (time.Time, error) {
	for {
		if at, ok := r.node.API.Listed("services", "endpointslices"); ok {
			return at, nil
		}
		if err := r.process.Ended(); err != nil {
			return time.Time{}, err
		}
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// changes makes single changes, each once the one before is done, until there are
// enough or the budget is spent.
func (r *run) changes(ctx context.Context, change func(i int) time.Time) samples {
	want := r.theirs
	if r.ours {
		want = r.mine
	}
	ctx, cancel := context.WithTimeout(ctx, r.budget)
	defer cancel()
	var ts []time.Duration
	for i := range want {
		time.Sleep(r.pause)
		before := r.node.Generation()
		sent := change(i)
		if !r.moved(ctx, before) {
			break
		}
		changed, _, ok := r.node.Quiet(ctx, r.process, before, r.quiet)
		if !ok || changed.IsZero() {
			break
		}
		ts = append(ts, changed.Sub(sent))
	}
	s := summary(ts)
	if len(ts) < want {
		s.Not = fmt.Sprintf("%d of %d within %s", len(ts), want, r.budget)
	}
	r.say("changes", s)
	return s
}

// moved waits for a change of the kernel's rules.
func (r *run) moved(ctx context.Context, before uint32) bool {
	for r.node.Generation() == before {
		if ctx.Err() != nil || r.process.Ended() != nil {
			return false
		}
		time.Sleep(100 * time.Microsecond)
	}
	return true
}

// changeEndpoint replaces one endpoint of one Service, and later puts it back.
func (r *run) changeEndpoint(i int) time.Time {
	s := (i * 7919) % r.Services
	addrs := node.Endpoints(s, r.Endpoints)
	if (i/r.Services)%2 == 0 {
		addrs[rand.IntN(len(addrs))] = fmt.Sprintf("10.250.%d.%d", s>>8&255, s&255)
	}
	return r.node.API.Set("endpointslices", node.Slice(node.ServiceName(s), addrs))
}

// addService adds one Service, whose endpoints are yet to come: one event, one
// change of the rules.
func (r *run) addService(i int) time.Time {
	return r.node.API.Set("services", node.Service(r.Services+i))
}

// churned changes an endpoint of 1 % of the Services each second.
func (r *run) churned(ctx context.Context) figure {
	began, cpu := time.Now(), r.process.CPU()
	perSecond := max(r.Services/100, 1)
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for i := 0; time.Since(began) < r.options.churn && ctx.Err() == nil; i++ {
		r.changeEndpoint(i + 1)
		<-tick.C
	}
	f := figure{Value: (r.process.CPU() - cpu).Seconds() / time.Since(began).Seconds()}
	r.say("churn", f)
	quiet, cancel := context.WithTimeout(ctx, r.budget)
	defer cancel()
	r.node.Quiet(quiet, r.process, r.node.Generation(), 2*time.Second)
	return f
}

// resync has the proxy read everything from the API again.
func (r *run) resync(ctx context.Context) {
	r.node.API.Disconnect()
	ctx, cancel := context.WithTimeout(ctx, r.budget)
	defer cancel()
	if _, err := r.listed(ctx); err == nil {
		r.node.Quiet(ctx, r.process, r.node.Generation(), 2*time.Second)
	}
}

// restart kills the proxy and starts it again beside what it left in the kernel.
func (r *run) restart(ctx context.Context) error {
	r.process.Kill()
	r.node.API.Forget()
	if err := r.start(); err != nil {
		return err
	}
	listed, err := r.listed(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithDeadline(ctx, listed.Add(r.budget))
	defer cancel()
	_, worked, ok := r.node.Quiet(ctx, r.process, r.node.Generation(), time.Second)
	r.Restart.Value = max(worked.Sub(listed).Seconds(), 0)
	if !ok {
		r.Restart = figure{Not: fmt.Sprintf("not finished after %s", r.budget)}
	}
	r.say("restart", r.Restart)
	return r.process.Ended()
}

func (r *run) say(what string, v any) { fmt.Fprintf(os.Stderr, "   %-8s %+v\n", what, v) }
