package perf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Save writes the document that Load reads.
func (e *Evaluation) Save(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", " ")
	return enc.Encode(e)
}

// Load reads an evaluation's document. One of another version, or that is not one, is an error of ErrInvalid.
func Load(r io.Reader) (*Evaluation, error) {
	e := &Evaluation{}
	if err := json.NewDecoder(r).Decode(e); err != nil {
		return nil, fmt.Errorf("%w: not an evaluation: %w", ErrInvalid, err)
	}
	switch {
	case e.Version != FormVersion:
		return nil, fmt.Errorf("%w: an evaluation of version %d, want %d", ErrInvalid, e.Version, FormVersion)
	case len(e.Paths) == 0 || len(e.Tests) == 0 || e.Base == "":
		return nil, fmt.Errorf("%w: an evaluation without paths or tests", ErrInvalid)
	}
	for _, c := range e.Cells {
		if c.Result == nil {
			return nil, fmt.Errorf("%w: round %d of %s has no result", ErrInvalid, c.Round, c.Path)
		}
	}
	for _, row := range e.Rows {
		if len(row.Ratios) != len(row.Rounds) || len(row.Rounds) == 0 {
			return nil, fmt.Errorf("%w: %s %s has %d rounds and %d ratios", ErrInvalid, row.Path, row.Test, len(row.Rounds), len(row.Ratios))
		}
		if slices.Min(row.Rounds) <= 0 || slices.Min(row.Ratios) <= 0 {
			return nil, fmt.Errorf("%w: %s %s has figures that are not above 0", ErrInvalid, row.Path, row.Test)
		}
	}
	e.restore()
	return e, nil
}

// restore makes the Config that the document was measured with, as far as it goes.
func (e *Evaluation) restore() {
	second := float64(time.Second)
	e.Config = Config{
		Tests: e.Tests, Datagram: e.Datagram, Seed: e.Seed, Binary: "podlane",
		Duration: time.Duration(e.Duration * second), Warmup: time.Duration(e.Warmup * second), Budget: time.Duration(e.Budget * second),
	}
	for _, p := range e.Paths {
		e.Config.Paths = append(e.Config.Paths, Path{Name: p.Name, Address: p.Address, ControlPort: p.ControlPort, DataPort: p.DataPort})
	}
	for _, s := range e.Steps {
		part := Part{s.Part, s.From, s.To}
		if s.Test == e.Steps[0].Test {
			e.parts = append(e.parts, part)
		}
	}
}

// usableForGate refuses an evaluation that nothing may be concluded from.
func (e *Evaluation) usableForGate(name string) error {
	switch {
	case e.Invalid != "":
		return fmt.Errorf("%w: %s: %s", ErrInvalid, name, e.Invalid)
	case len(e.Rows) == 0:
		return fmt.Errorf("%w: %s has no figures", ErrInvalid, name)
	}
	return nil
}

var errNothing = errors.New("the two have no path and test in common beside the base")
