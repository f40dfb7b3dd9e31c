package perf

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/podlane/podlane/perf/qperf"
	"github.com/podlane/podlane/perf/stats"
)

// Evaluate measures every path by every test, Rounds times over. In a round each pair of
// path and test comes once; the tests are in random order, and the paths of one test, in
// random order too, directly one after another, so that what is compared was measured
// within a few seconds. Order comes from the seed, which is recorded.
//
// A cell that fails is tried once more; failing again ends the evaluation, because figures
// of a path that works only sometimes would not mean anything. A cell that did not take its
// path ends it too, with ErrInvalid. The evaluation so far comes with the error, without rows.
func Evaluate(ctx context.Context, config Config) (*Evaluation, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	for config.Seed == 0 {
		config.Seed = rand.Uint64() >> 11 // exact in JSON, whose numbers are doubles
	}
	e := newEvaluation(config)
	start := time.Now()
	err = e.look(ctx)
	if err == nil {
		err = e.rounds(ctx, start)
	}
	if jump := e.Config.wall().Sub(e.Date) - time.Since(start); err == nil && jump.Abs() > maxJump {
		err = fmt.Errorf("%w: the clock of this machine jumped by %s while measuring", ErrInvalid, jump.Round(time.Millisecond))
	}
	e.Took = time.Since(start).Seconds()
	if errors.Is(err, ErrInvalid) {
		e.Invalid = err.Error()
	}
	if err != nil {
		return e, err
	}
	return e, e.conclude()
}

// maxJump is how far the wall clock may move against the monotonic one, which durations are taken by.
const maxJump = 2 * time.Second

// conclude makes of the cells what the document says of them.
func (e *Evaluation) conclude() (err error) {
	if e.Rows, err = Rows(e); err != nil {
		return err
	}
	e.Steps = e.decompose(e.parts)
	e.Warnings = warnings(e)
	used := usage(e)
	e.Steal, e.Others = used.steal, used.others
	return nil
}

func newEvaluation(c Config) *Evaluation {
	e := &Evaluation{
		Version: FormVersion, Date: c.wall(), Seed: c.Seed, Base: c.base(), Tests: c.Tests, Config: c,
		Duration: c.Duration.Seconds(), Warmup: c.Warmup.Seconds(), Budget: c.Budget.Seconds(),
	}
	for _, p := range c.Paths {
		e.Paths = append(e.Paths, PathInfo{p.Name, p.Address, cmp.Or(p.ControlPort, defaultControl), cmp.Or(p.DataPort, defaultData)})
	}
	return e
}

func (e *Evaluation) rounds(ctx context.Context, start time.Time) error {
	random := rand.New(rand.NewPCG(e.Seed, 0))
	for !e.enough(time.Since(start)) {
		for _, step := range order(random, e.Config) {
			at := time.Since(start).Seconds()
			cell, err := e.measure(ctx, e.Rounds+1, step)
			if err != nil {
				return err
			}
			cell.At = at
			e.Cells = append(e.Cells, cell)
			e.tell(cell, time.Since(start))
		}
		e.Rounds++
	}
	return nil
}

// enough tells whether to stop, and says why. Whether the intervals are narrow is looked at
// in growing steps, and only their widths are.
func (e *Evaluation) enough(elapsed time.Duration) bool {
	c := e.Config
	switch n := time.Duration(e.Rounds); {
	case n == 0:
	case c.Rounds > 0 && e.Rounds >= c.Rounds:
		e.Stopped = "the rounds asked for are done"
	case c.Budget > 0 && elapsed+elapsed/n > c.Budget:
		e.Stopped = "the budget is spent"
	case c.Budget > 0 && stats.Looks(c.MinRounds, e.Rounds) && stats.Narrow(e.family(), c.Width, Confidence):
		e.Stopped = fmt.Sprintf("every interval is narrower than %.3g %%", 100*c.Width)
	}
	return e.Stopped != ""
}

// A step is one cell before it is measured.
type step struct {
	path Path
	test qperf.Test
}

func order(random *rand.Rand, c Config) []step {
	var steps []step
	if c.Idle {
		for _, p := range c.Paths {
			if p.Name == c.base() {
				steps = append(steps, step{p, qperf.Rest})
			}
		}
	}
	for _, t := range random.Perm(len(c.Tests)) {
		for _, p := range random.Perm(len(c.Paths)) {
			steps = append(steps, step{c.Paths[p], c.Tests[t]})
		}
	}
	return steps
}

// look runs conf over every path: a path that does not work is found before anything is
// measured, and the size of datagrams is chosen to fit all paths, so that they are
// compared by the same.
func (e *Evaluation) look(ctx context.Context) error {
	fit := qperf.FittingDatagram
	for _, p := range e.Config.Paths {
		r, err := e.run(ctx, step{p, qperf.Conf})
		if err != nil {
			return err
		}
		e.Machines = append(e.Machines, Machine{Path: p.Name, Client: r.Conf.Local, Server: r.Conf.Remote, MTU: r.Path.MTU, Facts: r.Facts})
		fit = min(fit, r.Path.FittingDatagram())
	}
	if e.Config.Datagram == 0 {
		e.Config.Datagram = fit
	}
	e.Datagram = e.Config.Datagram
	return nil
}

func (e *Evaluation) measure(ctx context.Context, round int, s step) (Cell, error) {
	cell := Cell{Round: round, Path: s.path.Name}
	err := e.prove(ctx, &cell, s)
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrInvalid) {
		return cell, err
	}
	cell.Retried = err.Error()
	if err = e.prove(ctx, &cell, s); err != nil {
		return cell, fmt.Errorf("round %d: %w", round, err)
	}
	return cell, nil
}

// run runs the client once and reads what it measured.
func (e *Evaluation) run(ctx context.Context, s step) (*qperf.Result, error) {
	limit := e.Config.Duration + e.Config.Warmup + 30*time.Second
	if s.test == qperf.UDPSearch {
		limit *= 4
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer within %s", limit))
	defer cancel()
	out, err := s.path.Exec(ctx, e.argv(s))
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %s to %s: %w", s.path.Name, s.test, s.path.Address, err)
	}
	r := &qperf.Result{}
	if err := json.Unmarshal(bytes.TrimSpace(out), r); err != nil {
		return nil, fmt.Errorf("%s: %s: the client's answer is not JSON: %w", s.path.Name, s.test, err)
	}
	if err := usable(r, s.test); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", s.path.Name, s.test, err)
	}
	return r, nil
}

// usable refuses an answer that the rows cannot be made of.
func usable(r *qperf.Result, t qperf.Test) error {
	switch {
	case r.Version != 1 || r.Test != t:
		return fmt.Errorf("the client answered with version %d of a %q", r.Version, r.Test)
	case t == qperf.Conf && r.Conf == nil, t != qperf.Conf && (r.Figures == nil || r.Latency == nil && t.Latency() || r.Loss == nil && t.UDP() && t != qperf.Rest || r.Search == nil && t == qperf.UDPSearch):
		return errors.New("the client's answer has parts missing")
	case t == qperf.UDPSearch && r.Search.NoLoss == 0:
		return errors.New("datagrams were lost at every rate")
	case t.Unit() != "" && !(r.Value() > 0):
		return errors.New("nothing was received")
	}
	return nil
}

func (e *Evaluation) argv(s step) []string {
	c := e.Config
	argv := []string{
		c.Binary, "perf", "client", "--json", "--lp", port(s.path.ControlPort, defaultControl), "--ip", port(s.path.DataPort, defaultData),
		"-t", c.Duration.String(),
	}
	if c.Warmup > 0 {
		argv = append(argv, "--warmup", c.Warmup.String())
	}
	option := func(name string, on bool, value float64) {
		if on && value > 0 {
			argv = append(argv, name, strconv.FormatFloat(value, 'f', -1, 64))
		}
	}
	if s.test == qperf.Conf && s.path.Name == c.base() {
		argv = append(argv, "--floor")
	}
	option("-m", s.test == qperf.UDPBandwidth || s.test == qperf.UDPSearch, float64(c.Datagram))
	option("--streams", s.test == qperf.TCPStreams, float64(c.Streams))
	option("--pace", s.test == qperf.TCPBandwidth || s.test == qperf.TCPStreams, c.Pace)
	option("--rate", s.test == qperf.UDPOpen, c.Rate)
	option("--rate", s.test.UDP() && !s.test.Latency(), c.MaxRate)
	return append(argv, s.path.Address, string(s.test))
}

func port(p, otherwise int) string {
	if p == 0 {
		p = otherwise
	}
	return strconv.Itoa(p)
}

func (e *Evaluation) tell(cell Cell, elapsed time.Duration) {
	if e.Config.Progress != nil {
		total := e.Config.Rounds * len(e.Config.Paths) * len(e.Config.Tests)
		if e.Config.Idle {
			total += e.Config.Rounds
		}
		e.Config.Progress(Progress{Done: len(e.Cells), Total: total, Cell: cell, Elapsed: elapsed})
	}
}

// CommandOf is what measured one cell, as one would type it where the path begins.
func (e *Evaluation) CommandOf(path string, t qperf.Test) string {
	for _, p := range e.Config.Paths {
		if p.Name == path {
			return "podlane " + strings.Join(e.argv(step{p, t})[1:], " ")
		}
	}
	return ""
}
