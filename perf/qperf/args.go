package qperf

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// ErrHelp is a command line that asks for help.
var ErrHelp = errors.New("help asked for")

// A Job is one test of a command line, with the options that stood before it.
type Job struct {
	Test    Test
	Options Options
	Detail  Detail
}

// An Invocation is a client's whole command line.
type Invocation struct {
	Jobs []Job
	JSON bool
}

// Usage lists what ParseArgs understands.
const Usage = `  -lp, --listen_port N   control port of the server (19765)
  -ip, --ip_port N       data port (0: the server picks one)
  -m,  --msg_size SIZE   bytes of a message; k m g times 1000, K M G times 1024
  -t,  --time TIME       of a test (2 s); s m h d, or ms and parts of a second with a podlane server
  -to, --timeout TIME    of each step of the control connection (5 s)
  -ws, --wait_server TIME  for the server to be there (5 s)
  -sb, --sock_buf_size SIZE  of the server's data socket
  -v, -vv                all details, more details; -vs rates, -vt CPU, -vu parameters; -vvs, -vvt, -vvu
  -e,  --precision N     digits
  -ub, --use_bits_per_sec  -uu, --unify_units  -un, --unify_nodes
       --warmup TIME     traffic before the clock (needs a podlane server)
       --rate N          messages a second (udp_bw, udp_open: 1,000; udp_max: the highest to try)
       --streams N       of tcp_streams (4)
       --pace SIZE       bytes a second of tcp_bw, and of tcp_streams together, at most
       --floor           conf: this end's own latency over loopback too
       --plain           be exactly qperf: whole seconds, udp_bw with 32 KiB datagrams
       --json            one JSON document a test, one a line`

// an option reads its value, if it takes one, into the job under way.
type option struct {
	takes bool
	set   func(p *parser, value string) error
}

type parser struct {
	job  Job
	json bool
}

// ParseArgs reads a command line as qperf does: from left to right, an option counts for the
// tests after it, the first bare word is the server, the others are tests. A long or short option may
// have one dash or two.
func ParseArgs(args []string) (Invocation, error) {
	p := &parser{}
	inv := Invocation{}
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		name, isOption := optionName(word)
		if !isOption {
			if err := p.word(word, &inv); err != nil {
				return inv, err
			}
			continue
		}
		name, value, inline := strings.Cut(name, "=")
		o, ok := options[name]
		if !ok {
			return inv, fmt.Errorf("option %s: not known (see --help)", word)
		}
		if o.takes && !inline {
			if len(args) == 0 {
				return inv, fmt.Errorf("option %s: needs a value", word)
			}
			value, args = args[0], args[1:]
		}
		if err := o.set(p, value); err != nil {
			if errors.Is(err, ErrHelp) {
				return inv, err
			}
			return inv, fmt.Errorf("option %s: %w", word, err)
		}
	}
	inv.JSON = p.json
	switch {
	case p.job.Options.Server == "":
		return inv, errors.New("no server given")
	case len(inv.Jobs) == 0:
		return inv, errors.New("no test given (tcp_bw tcp_lat udp_bw udp_lat conf)")
	}
	return inv, nil
}

func optionName(word string) (string, bool) {
	if len(word) < 2 || word[0] != '-' {
		return "", false
	}
	return strings.TrimPrefix(word[1:], "-"), true
}

func (p *parser) word(word string, inv *Invocation) error {
	if p.job.Options.Server == "" {
		p.job.Options.Server = word
		return nil
	}
	t, err := ParseTest(word)
	if err != nil {
		return err
	}
	job := p.job
	job.Test = t
	inv.Jobs = append(inv.Jobs, job)
	return nil
}

var options = map[string]option{
	"json":  {set: func(p *parser, _ string) error { p.json = true; return nil }},
	"floor": {set: func(p *parser, _ string) error { p.job.Options.Floor = true; return nil }},
	"plain": {set: func(p *parser, _ string) error { p.job.Options.Plain = true; return nil }},
	"un":    {set: func(p *parser, _ string) error { p.job.Detail.Unify = true; return nil }},
	"ub":    {set: func(p *parser, _ string) error { p.job.Detail.Format.Bits = true; return nil }},
	"uu":    {set: func(p *parser, _ string) error { p.job.Detail.Format.Base = true; return nil }},
	"h":     {set: func(*parser, string) error { return ErrHelp }},
	"H":     {true, func(p *parser, v string) error { p.job.Options.Server = v; return nil }},
	"lp":    {true, func(p *parser, v string) error { return readPort(v, &p.job.Options.Port) }},
	"ip": {true, func(p *parser, v string) error {
		p.job.Detail.Given.Port = true
		return readPort(v, &p.job.Options.DataPort)
	}},
	"m": {true, func(p *parser, v string) error {
		p.job.Detail.Given.MsgSize = true
		return readSize(v, &p.job.Options.MsgSize)
	}},
	"sb": {true, func(p *parser, v string) error {
		p.job.Detail.Given.SockBuf = true
		return readSize(v, &p.job.Options.SockBuf)
	}},
	"t": {true, func(p *parser, v string) error {
		p.job.Detail.Given.Time = true
		return readTime(v, &p.job.Options.Time)
	}},
	"to": {true, func(p *parser, v string) error {
		p.job.Detail.Given.Timeout = true
		return readTime(v, &p.job.Options.Timeout)
	}},
	"rate":    {true, func(p *parser, v string) error { return readRate(v, &p.job.Options.Rate) }},
	"pace":    {true, func(p *parser, v string) error { return readRate(v, &p.job.Options.Pace) }},
	"streams": {true, func(p *parser, v string) error { return readCount(v, &p.job.Options.Streams) }},
	"ws":      {true, func(p *parser, v string) error { return readTime(v, &p.job.Options.Wait) }},
	"warmup":  {true, func(p *parser, v string) error { return readTime(v, &p.job.Options.Warmup) }},
	"e": {true, func(p *parser, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 || n > 17 {
			return fmt.Errorf("%s: not a number of digits", v)
		}
		if n == 0 {
			n = -1
		}
		p.job.Detail.Format.Precision = n
		return nil
	}},
}

func init() {
	for long, short := range map[string]string{
		"help": "h", "host": "H", "listen_port": "lp", "ip_port": "ip", "msg_size": "m", "sock_buf_size": "sb",
		"time": "t", "timeout": "to", "wait_server": "ws", "precision": "e", "unify_nodes": "un",
		"unify_units": "uu", "use_bits_per_sec": "ub",
	} {
		options[long] = options[short]
	}
	for level, dashes := range []string{"v", "vv"} {
		for _, what := range []string{"", "c", "s", "t", "u"} {
			options[dashes+what] = option{set: verbose(what, level+1)}
		}
	}
	options["verbose"] = options["v"]
}

func verbose(what string, level int) func(*parser, string) error {
	return func(p *parser, _ string) error {
		d := &p.job.Detail
		for name, to := range map[string]*int{"c": &d.Conf, "s": &d.Stat, "t": &d.Time, "u": &d.Used} {
			if what == "" || what == name {
				*to = level
			}
		}
		return nil
	}
}

func readPort(v string, to *int) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil {
		return fmt.Errorf("%s: not a port", v)
	}
	*to = int(n)
	return nil
}

func readRate(v string, to *float64) error {
	var n int
	err := readSize(v, &n)
	*to = float64(n)
	return err
}

func readCount(v string, to *int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		return fmt.Errorf("%s: not a number from 1", v)
	}
	*to = n
	return nil
}

var sizes = []struct {
	suffix string
	factor float64
}{
	{"kib", 1 << 10}, {"mib", 1 << 20}, {"gib", 1 << 30}, {"kb", 1e3}, {"mb", 1e6}, {"gb", 1e9},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"k", 1e3}, {"m", 1e6}, {"g", 1e9},
}

func readSize(v string, to *int) error {
	digits, factor := v, 1.0
	for _, s := range sizes {
		if rest, ok := strings.CutSuffix(v, s.suffix); ok {
			digits, factor = rest, s.factor
			break
		}
	}
	n, err := strconv.ParseFloat(digits, 64)
	if n *= factor; err != nil || !(n >= 1 && n <= 1<<31) {
		return fmt.Errorf("%s: not a size", v)
	}
	*to = int(n)
	return nil
}

// readTime takes qperf's 10, 2s, 1m, 1h, 1d, and Go's 500ms and 1m30s.
func readTime(v string, to *time.Duration) error {
	digits, unit := v, time.Second
	if rest, ok := strings.CutSuffix(v, "d"); ok {
		digits, unit = rest, 24*time.Hour
	}
	if n, err := strconv.ParseFloat(digits, 64); err == nil && n > 0 && n < 1e6 {
		*to = time.Duration(n * float64(unit))
		return nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		return fmt.Errorf("%s: not a time", v)
	}
	*to = d
	return nil
}

// Run runs the tests one after the other, and stops at the first that fails. Text has the
// form of qperf's; JSON is one Result a line.
func (inv Invocation) Run(ctx context.Context, w io.Writer) error {
	for _, job := range inv.Jobs {
		r, err := Run(ctx, job.Test, job.Options)
		if err != nil {
			return err
		}
		if inv.JSON {
			err = json.NewEncoder(w).Encode(r)
		} else {
			err = r.WriteText(w, job.Detail)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
