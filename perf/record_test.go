package perf

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/podlane/podlane/internal/nettest"
)

var record = flag.String("record", "", "measure one path under three names and write the rounds to this file (for the simulations)")

var recordRounds = flag.Int("record-rounds", 80, "rounds to record")

// noise is what was recorded: of each test, the figures of each round under the three names.
type noise map[string][][]float64

// TestRecord makes testdata/noise.json anew:
//
//	go test -run TestRecord -record testdata/noise.json ./perf
func TestRecord(t *testing.T) {
	if *record == "" {
		t.Skip("records noise only when told where to")
	}
	paths := threeNames(t)
	e, err := Evaluate(context.Background(), Config{Paths: paths, Rounds: *recordRounds, Duration: 200 * time.Millisecond, Warmup: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	n := noise{}
	for _, row := range e.Rows {
		n[string(row.Test)] = append(n[string(row.Test)], row.Rounds)
	}
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(*record, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// threeNames is one path, over a veth pair, under three names.
func threeNames(t *testing.T) (paths []Path) {
	t.Helper()
	nettest.New(t)
	server := nettest.Make(t)
	nettest.Run(t, "ip", "link", "add", "a0", "type", "veth", "peer", "name", "b0", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(server)))
	nettest.Run(t, "ip", "addr", "add", "10.77.0.9/24", "dev", "a0")
	nettest.Run(t, "ip", "link", "set", "a0", "up")
	nettest.Do(t, server, func() {
		for i := range 3 {
			nettest.Run(t, "ip", "addr", "add", fmt.Sprintf("10.77.0.%d/24", i+1), "dev", "b0")
		}
		nettest.Run(t, "ip", "link", "set", "b0", "up")
		cmd := exec.Command(os.Args[0], "perf", "server")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	})
	for i, name := range []string{NodeNode, PodPod, PodServicePod} {
		paths = append(paths, Path{Name: name, Address: fmt.Sprintf("10.77.0.%d", i+1), Exec: run})
	}
	return paths
}
