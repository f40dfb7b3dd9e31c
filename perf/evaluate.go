package perf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/podlane/podlane/perf/qperf"
)

// Evaluate measures every path by every test, Rounds times over. In a round each pair of
// path and test comes once; the tests are in random order, and the paths of one test, in
// random order too, directly one after another, so that what is compared was measured
// within a few seconds. Order comes from the seed, which is recorded.
//
// A cell that fails is tried once more; failing again ends the evaluation, because figures
// of a path that works only sometimes would not mean anything. The evaluation so far comes with the
// error, without rows.
func Evaluate(ctx context.Context, config Config) (*Evaluation, error) {
	config, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	for config.Seed == 0 {
		config.Seed = rand.Uint64() >> 11 // exact in JSON, whose numbers are doubles
	}
	e := &Evaluation{
		Version: 1, Seed: config.Seed, Rounds: config.Rounds, Base: config.base(), Config: config,
		Duration: config.Duration.Seconds(), Warmup: config.Warmup.Seconds(),
	}
	start := time.Now()
	if err := e.look(ctx); err != nil {
		return e, err
	}
	random := rand.New(rand.NewPCG(config.Seed, 0))
	for round := 1; round <= config.Rounds; round++ {
		for _, step := range order(random, config) {
			cell, err := e.measure(ctx, round, step)
			if err != nil {
				return e, err
			}
			e.Cells = append(e.Cells, cell)
			e.tell(cell, time.Since(start))
		}
	}
	e.Took = time.Since(start).Seconds()
	e.Rows, err = Rows(e)
	return e, err
}

// A step is one cell before it is measured.
type step struct {
	path Path
	test qperf.Test
}

func order(random *rand.Rand, c Config) []step {
	var steps []step
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
		e.Machines = append(e.Machines, Machine{Path: p.Name, Client: r.Conf.Local, Server: r.Conf.Remote, MTU: r.Path.MTU})
		fit = min(fit, r.Path.FittingDatagram())
	}
	if e.Config.Datagram == 0 {
		e.Config.Datagram = fit
	}
	return nil
}

func (e *Evaluation) measure(ctx context.Context, round int, s step) (Cell, error) {
	cell := Cell{Round: round, Path: s.path.Name}
	var err error
	if cell.Result, err = e.run(ctx, s); err == nil || ctx.Err() != nil {
		return cell, err
	}
	cell.Retried = err.Error()
	if cell.Result, err = e.run(ctx, s); err != nil {
		return cell, fmt.Errorf("round %d: %w", round, err)
	}
	return cell, nil
}

// run runs the client once and reads what it measured.
func (e *Evaluation) run(ctx context.Context, s step) (*qperf.Result, error) {
	limit := e.Config.Duration + e.Config.Warmup + 30*time.Second
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
	case t == qperf.Conf && r.Conf == nil, t != qperf.Conf && (r.Figures == nil || r.Latency == nil && t.Latency() || r.Loss == nil && t.UDP()):
		return errors.New("the client's answer has parts missing")
	case t != qperf.Conf && !(r.Value() > 0):
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
	if s.test == qperf.UDPBandwidth {
		argv = append(argv, "-m", strconv.Itoa(c.Datagram))
	}
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
		e.Config.Progress(Progress{Done: len(e.Cells), Total: total, Cell: cell, Elapsed: elapsed})
	}
}

// Command is what measured one cell, as one would type it where the path begins.
func (e *Evaluation) Command(path string, t qperf.Test) string {
	for _, p := range e.Config.Paths {
		if p.Name == path {
			return "podlane " + strings.Join(e.argv(step{p, t})[1:], " ")
		}
	}
	return ""
}
