package report

import (
	"bytes"
	"encoding/xml"
	"errors"
	"strings"
	"testing"

	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

func gate() *perf.Gate {
	return &perf.Gate{Outcome: perf.Regressed, MaxRegress: 0.05, Notes: []string{"MTU of pod-pod: 1500, now 1450"}, Checks: []perf.Check{
		{Path: perf.PodPod, Test: qperf.TCPBandwidth, Old: 0.8, New: 0.79, Worse: 0.012, Low: -0.01, High: 0.03, Outcome: perf.Holds},
		{Path: perf.PodPod, Test: qperf.TCPLatency, Old: 1.2, New: 1.5, Worse: 0.25, Low: 0.2, High: 0.3, Outcome: perf.Regressed},
		{Path: perf.PodPod, Test: qperf.UDPLatency, Old: 1.2, New: 1.25, Worse: 0.04, Low: -0.1, High: 0.2, Outcome: perf.CannotTell},
	}}
}

func TestGateTable(t *testing.T) {
	var out bytes.Buffer
	if err := GateTable(&out, gate()); err != nil {
		t.Fatal(err)
	}
	const want = `test     path     old ratio  new ratio  worse by  95 % interval      outcome
tcp_bw   pod-pod  0.80       0.79       1.2 %     -1.0 % .. 3.0 %    holds
tcp_lat  pod-pod  1.20       1.50       25.0 %    20.0 % .. 30.0 %   regressed
udp_lat  pod-pod  1.20       1.25       4.0 %     -10.0 % .. 20.0 %  cannot tell
note: MTU of pod-pod: 1500, now 1450
regressed: at least one ratio is worse by more than 5 %
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := JUnit(&out, gate(), nil); err != nil {
		t.Fatal(err)
	}
	var suite junitSuite
	if err := xml.Unmarshal(out.Bytes(), &suite); err != nil {
		t.Fatal(err)
	}
	if suite.Tests != 3 || suite.Failures != 1 || suite.Skipped != 1 || suite.Errors != 0 || len(suite.Cases) != 3 {
		t.Errorf("%+v", suite)
	}
	if c := suite.Cases[1]; c.Failure == nil || !strings.Contains(c.Failure.Message, "worse by 25.0 %") || c.Class != "podlane.perf.pod-pod" || c.Name != "tcp_lat" {
		t.Errorf("%+v", c)
	}
	out.Reset()
	lacking := &perf.Gate{Outcome: perf.CannotTell, MaxRegress: 0.05, Checks: gate().Checks[:1]}
	if err := JUnit(&out, lacking, nil); err != nil {
		t.Fatal(err)
	}
	suite = junitSuite{}
	if err := xml.Unmarshal(out.Bytes(), &suite); err != nil || suite.Tests != 2 || suite.Skipped != 1 || !strings.Contains(suite.Cases[1].Skipped.Message, "lacks some") {
		t.Errorf("%+v, %v", suite, err)
	}
	out.Reset()
	if err := JUnit(&out, nil, errors.New(`a "file" <gone>`)); err != nil {
		t.Fatal(err)
	}
	suite = junitSuite{}
	if err := xml.Unmarshal(out.Bytes(), &suite); err != nil || suite.Errors != 1 || suite.Cases[0].Error.Message != `a "file" <gone>` {
		t.Errorf("%+v, %v", suite, err)
	}
}

func TestExports(t *testing.T) {
	e := evaluation(t, 6, 0.04)
	var prom bytes.Buffer
	if err := Prometheus(&prom, e); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# TYPE podlane_perf_bandwidth_bytes_per_second gauge\n", `podlane_perf_bandwidth_bytes_per_second{path="pod-pod",test="tcp_bw"} `,
		`podlane_perf_ratio{path="node-node",test="udp_lat",bound="median"} 1` + "\n", `podlane_perf_latency_quantile_seconds{path="pod-pod",test="tcp_lat",quantile="0.999"} `,
		`podlane_perf_loss_part{path="pod-pod",test="udp_bw"} 0.231`,
	} {
		if !strings.Contains(prom.String(), want) {
			t.Errorf("no %q in\n%s", want, prom.String())
		}
	}
	for line := range strings.Lines(prom.String()) {
		if !strings.HasPrefix(line, "# ") && len(strings.Fields(line)) != 2 {
			t.Errorf("line %q", line)
		}
	}
	for i := range e.Cells { // a drawn result has no clocks
		r := e.Cells[i].Result
		r.Local, r.Remote = &qperf.Stat{CPUs: 2, TicksPerSecond: 1e6}, &qperf.Stat{}
		r.Local.End[qperf.Real], r.Local.End[qperf.Steal] = 1e6, 5e5
	}
	var table, text bytes.Buffer
	if err := errors.Join(CSV(&table, e), Text(&text, e)); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Split(strings.TrimSpace(table.String()), "\n"); len(lines) != 1+6*12 || strings.Count(lines[0], ",") != strings.Count(lines[1], ",") || !strings.Contains(lines[1], ",0.25,") {
		t.Errorf("%d lines: %s", len(lines), lines[:2])
	}
	if !strings.HasPrefix(text.String(), "# node-node (192.0.2.1), round 6\nconf:\n    loc_node   =  n1\n") || strings.Count(text.String(), "tcp_bw:\n    bw ") != 3 || strings.Count(text.String(), "udp_lat:\n    latency ") != 3 {
		t.Errorf("%s", text.String())
	}
}
