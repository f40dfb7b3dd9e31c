// Package perf measures paths through a network against one another: interleaved rounds of
// qperf's tests, and for each path the ratio to the path from node to node. It does not make the
// paths, and it does not go to where they begin: its caller gives a way to run a command there.
package perf

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/podlane/podlane/perf/qperf"
)

// Names of the three paths that every evaluation has. Ratios are to NodeNode.
const (
	NodeNode       = "node-node"
	PodPod         = "pod-pod"
	PodServicePod  = "pod-service-pod"
	defaultControl = 4000
	defaultData    = 4001
)

// ApartData is the data port of ways straight to a server that others reach through
// a Service. On one port, a connection through the Service meets one straight from the same
// client and source port that the server has in TIME_WAIT: the rules have to find it another
// source port, or, where the fast path kept the straight one from conntrack, the client has
// to ask twice, 8 ms apart. With thousands of connections a second that is all one measures.
const ApartData = 4002

// Exec runs a command where a path begins (a node's or pod's network namespace, a
// container) and gives its standard output. Its error should hold what the command wrote to
// standard error. argv[0] is Config.Binary.
type Exec func(ctx context.Context, argv []string) (stdout []byte, err error)

// A Path is one way from a client to a qperf server that is already running. The server's
// end may be reached by its own address or through a Service; a Service must offer both
// ports under the same numbers, the data port over TCP and UDP.
type Path struct {
	Name        string
	Address     string // of the server as the client is to ask for it
	ControlPort int    // 0 means 4000
	DataPort    int    // 0 means 4001
	Exec        Exec
	Proof       *Proof // what shows that a cell took the path it is named after; may be nil
}

// Config says what to evaluate.
type Config struct {
	Paths []Path
	Tests []qperf.Test // nil means the four measurements of qperf
	// Rounds is how many; 0 means 5, and with a Budget as many as it takes.
	Rounds int
	// Budget is the time to spend at most. The evaluation stops before when every ratio's interval
	// is no wider than Width, but not before MinRounds.
	Budget    time.Duration
	Width     float64       // 0 means 0.04: 4 % of the ratio, end to end
	MinRounds int           // 0 means 10
	Duration  time.Duration // of one cell; 0 means 500 ms
	Warmup    time.Duration // before each cell's clock; 0 means 100 ms, negative none
	Datagram  int           // bytes, of udp_bw and udp_max; 0 means what fits every path, at most 1400
	Streams   int           // of tcp_streams; 0 means 4
	Rate      float64       // of udp_open, messages/s; 0 means 1,000
	MaxRate   float64       // cap on udp_bw, udp_pps and udp_max, messages/s; 0 means none
	Pace      float64       // cap on tcp_bw and tcp_streams, bytes/s; 0 means none
	Idle      bool          // measure in each round what the machines do anyway: CPU figures need it
	Seed      uint64        // of the order; 0 means a random one
	Binary    string        // the podlane program where Exec runs; "" means this one
	Progress  func(Progress)
	wall      func() time.Time // for tests
}

// Progress is one cell done.
type Progress struct {
	Done, Total int
	Cell        Cell
	Elapsed     time.Duration
}

// A Cell is one test on one path in one round.
type Cell struct {
	Round  int           `json:"round"` // from 1
	At     float64       `json:"at"`    // seconds after the evaluation's start
	Path   string        `json:"path"`
	Result *qperf.Result `json:"result"`
	// Retried is why the cell was measured a second time; the first attempt gave no figure.
	Retried string `json:"retried,omitempty"`
	// Moved is by how much the path's witnesses rose.
	Moved map[string]uint64 `json:"moved,omitempty"`
}

// FormVersion is that of the Evaluation's JSON form, which docs/perf.md describes. It is raised when a key goes or
// changes its meaning; new keys may come at any time.
const FormVersion = 1

// An Evaluation is everything that was measured, in the order in which it was, and the rows
// made of it. Its JSON form is a file that `podlane perf compare` and `report` read.
type Evaluation struct {
	Version  int          `json:"version"` // FormVersion
	Date     time.Time    `json:"date"`    // of the start
	Seed     uint64       `json:"seed"`
	Rounds   int          `json:"rounds"`
	Stopped  string       `json:"stopped,omitempty"` // why there are not more rounds
	Duration float64      `json:"duration"`          // seconds of one cell
	Warmup   float64      `json:"warmup"`            // seconds
	Budget   float64      `json:"budget,omitempty"`  // seconds
	Datagram int          `json:"datagram"`          // bytes
	Took     float64      `json:"took"`              // seconds altogether
	Base     string       `json:"base"`              // the path that the ratios are to
	Paths    []PathInfo   `json:"paths"`
	Tests    []qperf.Test `json:"tests"`
	Machines []Machine    `json:"machines"`
	// Invalid is why the figures must not be used; empty where they may.
	Invalid  string   `json:"invalid,omitempty"`
	Warnings []string `json:"warnings,omitempty"` // of conditions that weaken the figures
	Steal    float64  `json:"steal"`              // part of the CPUs that the hypervisor took
	Others   float64  `json:"others"`             // part that other work used while nothing was measured
	Rows     []Row    `json:"evaluation"`
	Steps    []Step   `json:"steps,omitempty"` // what each part of the way adds
	Cells    []Cell   `json:"cells"`
	Notes    []Note   `json:"notes,omitempty"` // the caller's own conditions
	Command  []string `json:"command,omitempty"`
	Config   Config   `json:"-"`

	parts []Part
}

// A Note is one line of the conditions.
type Note struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// PathInfo is a Path as the document has it.
type PathInfo struct {
	Name        string `json:"name"`
	Address     string `json:"address"`
	ControlPort int    `json:"control_port"`
	DataPort    int    `json:"data_port"`
}

// Machine is what the two ends of a path say of themselves.
type Machine struct {
	Path   string        `json:"path"`
	Client qperf.Machine `json:"client"`
	Server qperf.Machine `json:"server"`
	MTU    int           `json:"mtu"` // of the client's way to the server, bytes
	// Facts are the conditions at both ends; nil where the server is a plain qperf.
	Facts *qperf.BothFacts `json:"facts,omitempty"`
}

func (c Config) withDefaults() (Config, error) {
	if c.Tests == nil {
		c.Tests = qperf.Tests
	}
	if c.Budget == 0 {
		c.Rounds = cmp.Or(c.Rounds, 5)
	}
	c.Width = cmp.Or(c.Width, 0.04)
	c.MinRounds = cmp.Or(c.MinRounds, 10)
	if c.wall == nil {
		c.wall = func() time.Time { return time.Now().Round(0) } // without the monotonic reading
	}
	c.Duration = cmp.Or(c.Duration, 500*time.Millisecond)
	c.Warmup = max(cmp.Or(c.Warmup, 100*time.Millisecond), 0)
	if c.Binary == "" {
		self, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("own program: %w", err)
		}
		c.Binary = self
	}
	return c, c.check()
}

func (c Config) check() error {
	names := map[string]bool{}
	for _, p := range c.Paths {
		switch {
		case p.Name == "" || names[p.Name]:
			return fmt.Errorf("path %q: no name, or a name twice", p.Name)
		case p.Exec == nil || p.Address == "":
			return fmt.Errorf("path %s: needs an address and a way to run the client", p.Name)
		}
		names[p.Name] = true
	}
	switch {
	case len(c.Paths) == 0:
		return errors.New("no path to evaluate")
	case len(c.Tests) == 0:
		return errors.New("no test to run")
	}
	return c.Check()
}

// Check refuses what no evaluation can be made with, whatever its paths are: better before these are made.
func (c Config) Check() error {
	switch {
	case c.Rounds < 0 || c.Budget < 0:
		return fmt.Errorf("%d rounds in %s: not below 0", c.Rounds, c.Budget)
	case c.Duration != 0 && c.Duration < 50*time.Millisecond:
		return fmt.Errorf("measurements of %s: too short, needs 50ms at least", c.Duration)
	case !(c.Rate >= 0 && c.MaxRate >= 0):
		return fmt.Errorf("rates of %g and %g a second: not below 0", c.Rate, c.MaxRate)
	case !(c.Pace >= 0 && c.Pace <= math.MaxInt32):
		return fmt.Errorf("a pace of %g bytes a second: not from 0 to %d", c.Pace, math.MaxInt32)
	case c.Streams < 0 || c.Streams > qperf.MaxStreams:
		return fmt.Errorf("%d streams: not from 1 to %d", c.Streams, qperf.MaxStreams)
	}
	return nil
}

// Longest is about how long measuring so many paths may take: the budget and the round that was under way, or,
// without one, the rounds.
func (c Config) Longest(paths int) time.Duration {
	const around = 2 * time.Second // of a measurement: the command, the connections, a second attempt now and then
	measurement := cmp.Or(c.Duration, 500*time.Millisecond) + max(c.Warmup, 0) + around
	each := max(len(c.Tests), len(qperf.Tests))
	if slices.Contains(c.Tests, qperf.UDPSearch) {
		each += 20 // trials
	}
	round := measurement * time.Duration(each*paths)
	if c.Budget > 0 {
		return c.Budget + round
	}
	return round * time.Duration(cmp.Or(c.Rounds, 5))
}

// base is the path that the ratios are to: from node to node, or where there is no such, the first.
func (c Config) base() string {
	for _, p := range c.Paths {
		if p.Name == NodeNode {
			return p.Name
		}
	}
	return c.Paths[0].Name
}
