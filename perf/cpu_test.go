package perf

import (
	"context"
	"errors"
	"math"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/perf/qperf"
)

// clocksOf makes one end's counters of a measurement: its length and what each kind took, in seconds.
func clocksOf(start uint64, length, user, nice, system, idle, iowait, irq, softirq, steal float64) *qperf.Stat {
	s := &qperf.Stat{CPUs: 2, TicksPerSecond: 1_000_000}
	for i, v := range []float64{length, user, nice, system, idle, iowait, irq, softirq, steal} {
		s.Start[i] = start
		s.End[i] = start + uint64(math.Round(v*1e6))
	}
	return s
}

// booked is an evaluation of one path and test whose CPU clocks are known: two rounds of half a second, each
// with an idle measurement of a fifth of one.
//
//	          user nice system irq softirq steal iowait   engine user, system
//	client     .10  .02   .20  .01   .08    .03    .05    .08 .15
//	server     .05   0    .30   0    .12    .01     0     .04 .25
//	idle        .01  0    .02   0    .004   .002   .006
func booked(test qperf.Test, oneMachine bool) *Evaluation {
	e := &Evaluation{Base: NodeNode, Tests: []qperf.Test{test}, Machines: []Machine{{Path: NodeNode, Facts: &qperf.BothFacts{
		Local: qperf.Facts{Boot: "a"}, Remote: qperf.Facts{Boot: "b"}}}}}
	if oneMachine {
		e.Machines[0].Facts.Remote.Boot = "a"
	}
	for round := 1; round <= 2; round++ {
		at := uint64(round) * 1e9
		rest := &qperf.Result{Test: qperf.Rest, Engine: &qperf.Engine{},
			Local:  clocksOf(at, 0.2, 0.01, 0, 0.02, 0.36, 0.006, 0, 0.004, 0.002),
			Remote: clocksOf(at, 0.2, 0.01, 0, 0.02, 0.36, 0.006, 0, 0.004, 0.002)}
		r := &qperf.Result{Test: test, Figures: &qperf.Figures{},
			Local:  clocksOf(at, 0.5, 0.10, 0.02, 0.20, 0.4, 0.05, 0.01, 0.08, 0.03),
			Remote: clocksOf(at, 0.5, 0.05, 0, 0.30, 0.4, 0, 0, 0.12, 0.01),
			Engine: &qperf.Engine{Local: qperf.CPUTime{User: 0.08, System: 0.15}, Remote: qperf.CPUTime{User: 0.04, System: 0.25}},
			Groups: &qperf.BothGroups{Local: &qperf.GroupTime{CPUTime: qperf.CPUTime{User: 0.09, System: 0.16}}, Remote: &qperf.GroupTime{CPUTime: qperf.CPUTime{User: 0.05, System: 0.26}}}}
		r.Local.Sent = qperf.Counters{Bytes: 1e9, Messages: 1e5}
		r.Local.Received, r.Remote.Received = qperf.Counters{Bytes: 1e5, Messages: 1e5}, qperf.Counters{Bytes: 8e8, Messages: 1e5}
		e.Cells = append(e.Cells, Cell{Round: round, Path: NodeNode, Result: rest}, Cell{Round: round, Path: NodeNode, Result: r})
	}
	return e
}

// The arithmetic on known clocks: each kind by itself, nice with user, less the idle of the same round for as
// long, in total without steal and iowait, per what was carried, and the network's share without the engine's.
func TestCPUCost_knownInput(t *testing.T) {
	// Of one round, 2.5 times the idle taken off.
	client := CPUKinds{User: 0.095, System: 0.15, SoftIRQ: 0.07, IRQ: 0.01, Steal: 0.025, IOWait: 0.035, Total: 0.325, Engine: 0.23, EngineCalls: 0.15, Network: 0.095, Group: 0.25}
	server := CPUKinds{User: 0.025, System: 0.25, SoftIRQ: 0.11, IRQ: 0, Steal: 0.005, IOWait: -0.015, Total: 0.385, Engine: 0.29, EngineCalls: 0.25, Network: 0.095, Group: 0.31}
	for _, c := range []struct {
		test qperf.Test
		unit string
		work float64 // of one round
	}{
		{qperf.TCPBandwidth, "s/GB", 0.8}, {qperf.UDPBandwidth, "s/GB", 0.8}, {qperf.TCPLatency, "us/message", 0.2}, {qperf.UDPOpen, "us/message", 0.2},
		{qperf.TCPConnect, "us/connection", 0.1}, {qperf.UDPPackets, "us/packet", 0.1},
	} {
		got := booked(c.test, false).cpuCost(NodeNode, c.test)
		if got == nil || got.Unit != c.unit || got.OneMachine || got.Server == nil {
			t.Fatalf("%s: %+v", c.test, got)
		}
		near(t, string(c.test)+" client", *got.Client, client, c.work)
		near(t, string(c.test)+" server", *got.Server, server, c.work)
	}
	// Both ends read the same clocks: the machine once, and both engines off it.
	one := client
	one.Engine, one.EngineCalls, one.Network, one.Group = 0.52, 0.40, 0, 0
	got := booked(qperf.TCPLatency, true).cpuCost(NodeNode, qperf.TCPLatency)
	if got == nil || !got.OneMachine || got.Server != nil {
		t.Fatalf("one machine: %+v", got)
	}
	near(t, "one machine", *got.Client, one, 0.2)
}

func near(t *testing.T, what string, got, want CPUKinds, work float64) {
	t.Helper()
	fields := func(k CPUKinds) []float64 {
		return []float64{k.User, k.System, k.SoftIRQ, k.IRQ, k.Steal, k.IOWait, k.Total, k.Engine, k.EngineCalls, k.Network, k.Group}
	}
	for i, w := range fields(want) {
		if g := fields(got)[i]; math.Abs(g-w/work) > 1e-6 {
			t.Errorf("%s: got %+v, want %+v per %g: number %d is %g, not %g", what, got, want, work, i, g, w/work)
			return
		}
	}
}

// There is no cost where it cannot be told: without idle measurements, of a search, with nothing carried, and with so
// much other work that what is measured takes from what is subtracted. A clock that ran backwards takes nothing.
func TestCPUCost_none(t *testing.T) {
	for name, change := range map[string]func(*Evaluation){
		"no idle":         func(e *Evaluation) { e.Cells = e.Cells[1:2] },
		"nothing carried": func(e *Evaluation) { e.Cells = e.Cells[:2]; e.Cells[1].Result.Remote.Received = qperf.Counters{} },
		"others": func(e *Evaluation) {
			for _, c := range e.Cells {
				if c.Result.Test == qperf.Rest {
					c.Result.Local.End[qperf.User] += 300_000
					c.Result.Remote.End[qperf.User] += 300_000
				}
			}
		},
	} {
		e := booked(qperf.TCPBandwidth, false)
		change(e)
		if got := e.cpuCost(NodeNode, qperf.TCPBandwidth); got != nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := booked(qperf.UDPSearch, false).cpuCost(NodeNode, qperf.UDPSearch); got != nil {
		t.Errorf("of a search: %+v", got)
	}
	unknown := booked(qperf.TCPBandwidth, false)
	unknown.Cells[1].Result.Groups.Remote = nil
	if got := unknown.cpuCost(NodeNode, qperf.TCPBandwidth); got.Client.Group == 0 || got.Server.Group != 0 {
		t.Errorf("a cgroup that is not known of one measurement: %+v %+v", got.Client, got.Server)
	}
	e := booked(qperf.TCPBandwidth, false)
	for _, c := range e.Cells {
		c.Result.Local.End[qperf.IRQ] = c.Result.Local.Start[qperf.IRQ] - 5
	}
	if got := e.cpuCost(NodeNode, qperf.TCPBandwidth); got.Client.IRQ != 0 {
		t.Errorf("backwards: %+v", got.Client)
	}
}

// Against a load that is known by itself: beside every measurement of one of two equal paths a process of ours uses
// some 60 % of a CPU, and what it used is what the kernel says of it when it has ended. That much more CPU, in user time and in the network's
// share, the path must cost. The test sends at a fixed rate: a ping-pong goes at another speed beside a load, and its own cost with it.
func TestCPUCost_knownLoad(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skipf("needs python3 to use the CPU: %v", err)
	}
	const attempts = 3
	for attempt := 1; ; attempt++ {
		others := busy(t)
		var extra CPUKinds
		var used float64
		if others <= 0.10 {
			extra, used, others = loadedRun(t)
		}
		if others > 0.10 {
			if attempt < attempts {
				continue
			}
			t.Skipf("needs a machine with time to spare: other work used %.0f %% of it in the last of %d attempts", 100*others, attempts)
		}
		t.Logf("the load used %.3f s in the clocks' time, the path cost %.3f s more in total, %.3f s more in user time, %.3f s beside the engine",
			used, extra.Total, extra.User, extra.Network)
		ok := math.Abs(extra.Total/used-1) < 0.2 && math.Abs(extra.User/used-1) < 0.25 && math.Abs(extra.Network/used-1) < 0.25
		if ok {
			return
		}
		if attempt == attempts {
			t.Fatalf("in none of %d attempts", attempts)
		}
	}
}

// busy is the part of the CPUs that others use at the moment.
func busy(t *testing.T) float64 {
	e, err := Evaluate(t.Context(), Config{Paths: loopback(t)[:1], Tests: []qperf.Test{qperf.UDPOpen}, Rounds: 1, Idle: true, Binary: os.Args[0]})
	if err != nil {
		t.Fatal(err)
	}
	return usage(e).others
}

// loadedRun gives what the path with the load cost beyond the one without, in seconds of all rounds together, and
// what the load used while measured, and how much others used.
func loadedRun(t *testing.T) (extra CPUKinds, used, others float64) {
	paths := loopback(t)[:2]
	paths[1].Exec = func(ctx context.Context, argv []string) ([]byte, error) {
		if argv[len(argv)-1] != string(qperf.UDPOpen) {
			return run(ctx, argv)
		}
		// At random lengths: the kernel's clocks count by ticks, of 4 ms say, and would see another part of a load in step with them.
		load := exec.CommandContext(ctx, "python3", "-c", "import time, random\nwhile True:\n e=time.monotonic()+random.uniform(.002,.01)\n while time.monotonic()<e: pass\n time.sleep(random.uniform(.001,.007))")
		load.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := load.Start(); err != nil {
			return nil, err
		}
		started := time.Now()
		out, err := run(ctx, argv)
		length := time.Since(started)
		_ = load.Process.Kill()
		_ = load.Wait()
		if state, ok := load.ProcessState.SysUsage().(*syscall.Rusage); ok {
			// It ran for longer than the clocks did: the part of it that they saw.
			used += (time.Duration(state.Utime.Nano()) + time.Duration(state.Stime.Nano())).Seconds() * 0.4 / length.Seconds()
		}
		return out, err
	}
	e, err := Evaluate(t.Context(), Config{
		Paths: paths, Tests: []qperf.Test{qperf.UDPOpen}, Rounds: 8, Duration: 400 * time.Millisecond, Warmup: 100 * time.Millisecond, Rate: 200, Idle: true, Binary: os.Args[0],
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	others = usage(e).others
	var sums [2]*CPUKinds
	for i, p := range paths {
		cost := e.cpuCost(p.Name, qperf.UDPOpen)
		if cost == nil {
			return extra, used, 1
		}
		per := 0.0
		for _, r := range e.results(p.Name, qperf.UDPOpen) {
			per += work(r)
		}
		k := *cost.Client
		sums[i] = &CPUKinds{User: k.User * per, Total: k.Total * per, Network: (k.Total - k.Engine) * per}
	}
	return CPUKinds{User: sums[1].User - sums[0].User, Total: sums[1].Total - sums[0].Total, Network: sums[1].Network - sums[0].Network}, used, others
}
