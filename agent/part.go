package agent

import (
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/overlay/fastpath"
)

// part is what fast path and translation at the socket have in common: the agent
// does without them where it has to. What goes wrong is said, counted and tried again.
type part struct {
	what string // in the log
	name string // of the flag, without its dashes
	log  *slog.Logger
	why  string // it is off; "" where it is on
	err  error  // of the last try
	// failed is how many tries have failed in a row, count is told of each.
	failed int
	count  func(part string)
	// read reads its counters, for scrapes, which other goroutines make.
	read atomic.Pointer[func() ([]bpf.Count, error)]
}

// begin takes it into use by open, which gives what reads its counters, or away by
// remove. dir is where it has its pins; "" for none.
func (p *part) begin(m fastpath.Mode, dir string, open func() (func() ([]bpf.Count, error), error), remove func(dir string) error) error {
	if m == fastpath.Off || m == "" {
		p.why = "off by --" + p.name
		if dir == "" {
			return nil
		}
		return remove(dir)
	}
	read, err := open()
	if err == nil {
		p.read.Store(&read)
		return nil
	}
	p.why = err.Error()
	if m == fastpath.On {
		return fmt.Errorf("--%s on: %w", p.name, err)
	}
	p.log.Info(p.what, "state", "off", "err", err)
	return remove(dir) // what an agent with more rights left must not stay
}

// report notes how a try went. The loop makes the next one.
func (p *part) report(err error) {
	if err != nil && (p.err == nil || p.err.Error() != err.Error()) {
		p.log.Warn(p.what, "err", err)
	}
	if err == nil && p.err != nil {
		p.log.Info(p.what, "state", "recovered", "failures", p.failed)
	}
	p.err = err
	if err == nil {
		p.failed = 0
		return
	}
	p.failed++
	if p.count != nil {
		p.count(p.name)
	}
}

// counts reads the counters for a scrape, from any goroutine; none where it is off.
func (p *part) counts() (map[string]uint64, error) {
	read := p.read.Load()
	if read == nil {
		return nil, nil
	}
	list, err := (*read)()
	out := make(map[string]uint64, len(list))
	for _, c := range list {
		out[c.Reason] = c.Packets
	}
	return out, err
}
