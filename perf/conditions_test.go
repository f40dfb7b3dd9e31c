package perf

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/perf/qperf"
)

// fine is an evaluation of two machines of which there is nothing to say.
func fine() *Evaluation {
	e := booked(qperf.TCPBandwidth, false)
	e.Paths = []PathInfo{{Name: NodeNode}, {Name: PodPod}}
	facts := func(boot string) qperf.Facts {
		return qperf.Facts{Boot: boot, CPUs: 2, Governor: "performance", Load: 0.3, Device: "eth0", MTU: 1500, Off: []string{"gro"}}
	}
	e.Machines = nil
	for _, p := range e.Paths {
		e.Machines = append(e.Machines, Machine{Path: p.Name, MTU: 1500, Client: qperf.Machine{Node: "a"}, Server: qperf.Machine{Node: "b"},
			Facts: &qperf.BothFacts{Local: facts("1"), Remote: facts("2")}})
	}
	for _, c := range e.Cells { // no steal, little else
		for _, s := range []*qperf.Stat{c.Result.Local, c.Result.Remote} {
			s.End[qperf.Steal] = s.Start[qperf.Steal]
		}
	}
	return e
}

func TestWarnings(t *testing.T) {
	facts := func(change func(*qperf.Facts)) func(*Evaluation) {
		return func(e *Evaluation) { change(&e.Machines[0].Facts.Remote) }
	}
	rest := func(kind int, micros uint64) func(*Evaluation) {
		return func(e *Evaluation) {
			for _, c := range e.Cells {
				if c.Result.Test == qperf.Rest {
					c.Result.Local.End[kind] += micros
					c.Result.Remote.End[kind] += micros
				}
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(*Evaluation)
		want   []string // parts of the warnings, one each, in order
	}{
		{"nothing", func(*Evaluation) {}, nil},
		{"one machine", func(e *Evaluation) {
			for _, m := range e.Machines {
				m.Facts.Remote.Boot = "1"
			}
		}, []string{"both ends are on one machine"}},
		{"governor", facts(func(f *qperf.Facts) { f.Governor = "powersave" }), []string{`b: the CPU's frequency governor is "powersave"`}},
		{"no governor", facts(func(f *qperf.Facts) { f.Governor = "" }), nil},
		{"limit", facts(func(f *qperf.Facts) { f.CPULimit = 0.5 }), []string{"b: limited to 0.5 CPUs of 2"}},
		{"a limit beyond", facts(func(f *qperf.Facts) { f.CPULimit = 4 }), nil},
		{"load", facts(func(f *qperf.Facts) { f.Load = 3 }), []string{"b: a load of 3.0 on 2 CPUs"}},
		{"offloads", facts(func(f *qperf.Facts) { f.Off = []string{"gro", "tso", "tx-checksum"} }), []string{"node-node: eth0 has no tso, tx-checksum"}},
		{"MTUs", func(e *Evaluation) { e.Machines[1].MTU = 1450 }, []string{"the paths' MTUs differ: 1450 on pod-pod; 1500 on node-node"}},
		{"steal", func(e *Evaluation) {
			for _, c := range e.Cells {
				c.Result.Local.End[qperf.Steal] += 60_000
			}
		}, []string{"(steal)"}},
		{"a little steal", func(e *Evaluation) { e.Cells[0].Result.Local.End[qperf.Steal] += 10_000 }, nil},
		{"other work", rest(qperf.User, 60_000), []string{"other work used 24 % of the CPU"}},
		{"too much of it", rest(qperf.SoftIRQ, 250_000), []string{"other work used 71 %", "CPU costs are left out"}},
		{"retransmits", func(e *Evaluation) { e.Cells[1].Result.Path.Retransmits = 5000 }, []string{"TCP sent 5000 segments again"}},
		{"few of them", func(e *Evaluation) { e.Cells[1].Result.Path.Retransmits = 5 }, nil},
		{"drops", func(e *Evaluation) { e.Cells[1].Result.Drops = &qperf.BothDrops{Remote: qperf.Drops{Device: 7}} }, []string{"dropped 7 packets"}},
		{"throttled", func(e *Evaluation) { e.Cells[1].Result.Groups.Remote.Throttled = 0.14 }, []string{"the CPU limit of the servers' containers held them up for 10 %"}},
		{"throttled a little", func(e *Evaluation) { e.Cells[1].Result.Groups.Local.Throttled = 0.01 }, nil},
		{"retried", func(e *Evaluation) { e.Cells[1].Retried = "no answer" }, []string{"1 of 4 measurements failed at first"}},
	} {
		e := fine()
		c.change(e)
		got := warnings(e)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", c.name, got)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %q, want %q", c.name, got[i], want)
			}
		}
	}
}

// The quantiles' intervals are of the rounds, not of the messages.
func TestQuantiles(t *testing.T) {
	var rs []*qperf.Result
	for i := range 20 {
		rs = append(rs, &qperf.Result{Latency: &qperf.Distribution{P50: 10e-6, P90: 20e-6, P99: float64(90+i) * 1e-6, P999: 1e-3}})
	}
	qs := quantiles(rs)
	if len(qs) != 4 || qs[0] != (Quantile{0.5, 10e-6, 10e-6, 10e-6}) || qs[2].Part != 0.99 || qs[2].Low < 93e-6 || qs[2].Low > 99.5e-6 || qs[2].High < 99.5e-6 || qs[2].High > 106e-6 {
		t.Errorf("%+v", qs)
	}
	if few := quantiles(rs[:3]); few[2].Low != 0 || few[2].High != 0 || few[2].Median < 90.9e-6 || few[2].Median > 91.1e-6 {
		t.Errorf("%+v", few)
	}
}

// seen answers every cell as a server that was reached at own, when it was asked for at asked.
func seen(name, asked, own string) Path {
	p := fake(name, func(int) float64 { return 1 })
	inner := p.Exec
	p.Exec = func(ctx context.Context, argv []string) ([]byte, error) {
		out, err := inner(ctx, argv)
		r := &qperf.Result{}
		if err == nil {
			err = json.Unmarshal(out, r)
		}
		r.Path.Data = netip.AddrPortFrom(netip.MustParseAddr(asked), 4001)
		if own != "" {
			r.Path.PeerLocal = netip.AddrPortFrom(netip.MustParseAddr(own), 4001)
		}
		if err != nil {
			return nil, err
		}
		return json.Marshal(r)
	}
	return p
}

// A run whose packets went another way than its path's name says is invalid, and says so.
func TestProof(t *testing.T) {
	const service, pod, other = "10.96.0.7", "10.244.1.2", "10.244.1.3"
	steps := func(counts ...uint64) func(context.Context) (map[string]uint64, error) {
		at := 0
		return func(context.Context) (map[string]uint64, error) {
			n := counts[min(at, len(counts)-1)]
			at++
			return map[string]uint64{Connections: n}, nil
		}
	}
	servers := []netip.Addr{netip.MustParseAddr(pod)}
	still, moves := map[string]uint64{Connections: 0}, []string{Connections}
	for _, c := range []struct {
		name       string
		asked, own string
		proof      Proof
		want       string // part of the error
	}{
		{"straight", pod, pod, Proof{Servers: servers, Witness: steps(5), Still: still}, ""},
		{"through the Service", service, pod, Proof{Servers: servers, Translated: true, Witness: steps(5, 6, 6, 8), Moves: moves}, ""},
		{"the Service's address on the server", service, service, Proof{Translated: true}, "reached at 10.96.0.7 itself, not through a Service"},
		{"translated on the way", pod, other, Proof{}, "asked for 10.244.1.2, and the server was reached as 10.244.1.3"},
		{"another server", service, other, Proof{Servers: servers, Translated: true}, "a server at 10.244.1.3 answered"},
		{"a server that does not say", service, "", Proof{Servers: servers, Translated: true}, "does not say"},
		{"counter stood still", service, pod, Proof{Translated: true, Witness: steps(5), Moves: moves}, "did not move"},
		{"counter stood still in the second round", service, pod, Proof{Translated: true, Witness: steps(5, 6, 6), Moves: moves}, "in round 2"},
		{"that is not looked at", service, pod, Proof{Translated: true, Witness: steps(5, 6, 6), Moves: moves, Rounds: 1}, ""},
		{"counter moved", pod, pod, Proof{Witness: steps(5, 6), Still: still}, "moved by 1"},
	} {
		p := seen(PodPod, c.asked, c.own)
		p.Proof = &c.proof
		e, err := Evaluate(t.Context(), Config{Paths: []Path{p}, Tests: []qperf.Test{qperf.TCPBandwidth}, Rounds: 2})
		if c.want == "" {
			if err != nil || e.Invalid != "" || len(e.Rows) != 1 {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || e.Invalid != err.Error() || len(e.Rows) > 0 {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if text, _ := json.Marshal(e); !strings.Contains(string(text), `"invalid":"invalid run: pod-pod`) {
			t.Errorf("%s: the document does not say so: %s", c.name, text)
		}
	}
}

// What passes the overlay beside a measurement is no proof of its way: as many packets must have passed as it carried.
func TestProof_packets(t *testing.T) {
	carried := func(test qperf.Test, messages, bytes uint64) *qperf.Result {
		return &qperf.Result{Test: test, Remote: &qperf.Stat{Received: qperf.Counters{Messages: messages, Bytes: bytes}}}
	}
	for _, c := range []struct {
		result *qperf.Result
		moved  uint64
		want   string // part of the error
	}{
		{carried(qperf.TCPLatency, 1000, 1000), 1000, ""},
		{carried(qperf.TCPLatency, 1000, 1000), 999, "moved by 999, and at least 1000 went"},
		{carried(qperf.UDPBandwidth, 1000, 1_400_000), 4, "moved by 4, and at least 1000 went"},
		{carried(qperf.TCPBandwidth, 1000, 1000<<16), 500, ""},
		{carried(qperf.TCPBandwidth, 1000, 1000<<16), 499, "moved by 499, and at least 500 went"},
		{carried(qperf.TCPConnect, 10, 10), 0, "did not move"},
	} {
		own := netip.MustParseAddrPort("10.244.1.2:4001")
		c.result.Path = qperf.PathFacts{Data: own, PeerLocal: own}
		cell := &Cell{Round: 1, Result: c.result, Moved: map[string]uint64{Tunnelled: c.moved}}
		p := &Proof{Moves: []string{Tunnelled}, Witness: func(context.Context) (map[string]uint64, error) { return nil, nil }}
		if err := p.check(cell); (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %d packets in the overlay: %v, want %q", c.result.Test, c.moved, err, c.want)
		}
		if cell.Encapsulated() != (c.want == "") {
			t.Errorf("%s, %d packets in the overlay: encapsulated %v", c.result.Test, c.moved, cell.Encapsulated())
		}
	}
}

// A wall clock that jumps makes the run invalid, forwards and backwards; one that is put right a little does not.
func TestEvaluate_clockJumps(t *testing.T) {
	for by, invalid := range map[time.Duration]bool{0: false, time.Second: false, -time.Second: false, time.Minute: true, -time.Hour: true} {
		moved := time.Duration(0)
		p := fake(NodeNode, func(round int) float64 {
			if round == 2 {
				moved = by
			}
			return 1
		})
		e, err := Evaluate(t.Context(), Config{Paths: []Path{p}, Tests: []qperf.Test{qperf.TCPBandwidth}, Rounds: 3,
			wall: func() time.Time { return time.Now().Round(0).Add(moved) }})
		if errors.Is(err, ErrInvalid) != invalid || invalid && (!strings.Contains(err.Error(), "jumped") || e.Invalid == "") || !invalid && err != nil {
			t.Errorf("by %s: %v", by, err)
		}
	}
}

// Drift and its ratios: the trend is warned about, and only of the path whose figures it spoils.
func TestWarnings_namesTheTest(t *testing.T) {
	e := fine()
	e.Tests = []qperf.Test{qperf.TCPBandwidth}
	for round := range 20 {
		e.Cells = append(e.Cells, Cell{Round: 3 + round, Path: NodeNode, Result: drawn(qperf.TCPBandwidth, 1/float64(1+round))})
	}
	if ws := warnings(e); !slices.ContainsFunc(ws, func(w string) bool { return strings.Contains(w, "tcp_bw on node-node fell") }) {
		t.Errorf("%q", ws)
	}
}
