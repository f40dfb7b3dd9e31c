package qperf

import (
	"fmt"
	"io"
	"time"
)

// Detail is how much qperf's text shows beyond the figure itself: 0, 1 (-v) or 2 (-vv) of each.
type Detail struct {
	Conf   int // -vc: nothing for these tests
	Stat   int // -vs: rates; 2: errors, bytes, messages
	Time   int // -vt: cost and CPUs; 2: CPU by kind
	Used   int // -vu: the parameters that were given; 2: all that apply
	Given  Given
	Unify  bool // -un: loc_ and rem_ in place of send_ and recv_
	Format Style
}

// Given are the parameters that the user set himself.
type Given struct{ MsgSize, Port, SockBuf, Time, Timeout bool }

// A line is one name and figure of the output.
type line struct {
	name  string
	value number
	text  string // conf: in place of a number
}

type lines struct {
	detail Detail
	list   []line
}

func (l *lines) always(name string, v float64, k kind) {
	l.list = append(l.list, line{name: name, value: l.detail.Format.format(v, k)})
}

// when adds a line if the level is reached and there is something to say.
func (l *lines) when(on bool, name string, v float64, k kind) {
	if on && v > 0 {
		l.always(name, v, k)
	}
}

// WriteText writes the result in the form of qperf's own output, byte for byte, its heading
// included.
func (r *Result) WriteText(w io.Writer, d Detail) error {
	l := &lines{detail: d}
	switch {
	case r.Conf != nil:
		l.machine("loc_", r.Conf.Local)
		l.machine("rem_", r.Conf.Remote)
	default:
		l.figures(r)
		l.parameters(r)
		l.cpu(r)
	}
	_, err := fmt.Fprintf(w, "%s:\n%s", r.Test, l.layout())
	return err
}

func (l *lines) machine(prefix string, m Machine) {
	names := []string{"node", "cpu", "os", "qperf"}
	for i, f := range m.fields() {
		l.list = append(l.list, line{name: prefix + names[i], text: *f})
	}
}

func (l *lines) figures(r *Result) {
	f := r.Figures
	switch r.Test {
	case TCPBandwidth:
		l.always("bw", f.RecvBandwidth, asBandwidth)
	case UDPBandwidth:
		l.always("send_bw", f.SendBandwidth, asBandwidth)
		l.always("recv_bw", f.RecvBandwidth, asBandwidth)
	case TCPStreams:
		l.always("bw", f.RecvBandwidth, asBandwidth)
		l.always("streams", float64(r.Streams), asCount)
	case TCPConnect:
		l.always("conn_rate", f.MessageRate, asRate)
		return
	case UDPPackets:
		l.always("packet_rate", f.MessageRate, asRate)
		l.always("lost", float64(r.Loss.Lost), asCount)
		return
	case UDPSearch:
		l.always("bw_no_loss", r.Search.NoLoss, asBandwidth)
		l.always("bw_half_percent", r.Search.HalfPercent, asBandwidth)
		return
	case Rest:
		return
	case UDPOpen:
		l.always("latency", f.Latency, asTime)
		l.always("latency_p99", r.Latency.P99, asTime)
		l.always("latency_max", r.Latency.Max, asTime)
		l.always("lost", float64(r.Loss.Lost), asCount)
	default:
		l.always("latency", f.Latency, asTime)
	}
	l.when(l.detail.Stat >= 1, "msg_rate", f.MessageRate, asRate)
}

func (l *lines) parameters(r *Result) {
	d := l.detail
	show := func(given bool) bool { return d.Used >= 2 || d.Used == 1 && given }
	l.when(show(d.Given.MsgSize), "msg_size", float64(r.MsgSize), asSize)
	port := 0
	if d.Given.Port {
		port = r.Port
	}
	l.when(show(d.Given.Port), "port", float64(port), asCount)
	l.when(show(d.Given.SockBuf), "sock_buf_size", float64(r.sockBuf), asSize)
	l.when(show(d.Given.Time), "time", r.Time, asTime)
	l.when(show(d.Given.Timeout), "timeout", r.timeout.Truncate(time.Second).Seconds(), asTime)
}

func (l *lines) cpu(r *Result) {
	f := r.Figures
	if !r.Test.Latency() {
		l.when(l.detail.Time >= 1, "send_cost", f.SendCost, asCost)
		l.when(l.detail.Time >= 1, "recv_cost", f.RecvCost, asCost)
	}
	oneWay := !r.Test.Latency() && r.Remote.Received.Messages > 0 && !l.detail.Unify
	if oneWay {
		l.side("send_", f.Local, r.Local.Sent, Counters{}, oneWay)
		l.side("recv_", f.Remote, Counters{}, r.Remote.Received, oneWay)
		return
	}
	l.side("loc_", f.Local, r.Local.Sent, r.Local.Received, oneWay)
	l.side("rem_", f.Remote, r.Remote.Sent, r.Remote.Received, oneWay)
}

// side is one machine's block; a side that goes one way only needs no direction in its counters' names.
func (l *lines) side(prefix string, c CPU, sent, received Counters, oneWay bool) {
	t, kinds, counts := l.detail.Time >= 1, l.detail.Time >= 2, l.detail.Stat >= 2
	l.when(t, prefix+"cpus_used", c.Used, asCPU)
	l.when(kinds, prefix+"cpus_user", c.User, asCPU)
	l.when(kinds, prefix+"cpus_intr", c.Intr, asCPU)
	l.when(kinds, prefix+"cpus_kernel", c.Kernel, asCPU)
	l.when(kinds, prefix+"cpus_iowait", c.IOWait, asCPU)
	l.when(kinds, prefix+"real_time", c.RealTime, asTime)
	l.when(kinds, prefix+"cpu_time", c.CPUTime, asTime)
	send, recv := prefix+"send_", prefix+"recv_"
	if oneWay {
		send, recv = prefix, prefix
	}
	for _, count := range []struct {
		name string
		k    kind
		of   func(Counters) uint64
	}{
		{"errors", asCount, func(c Counters) uint64 { return c.Errors }},
		{"bytes", asSize, func(c Counters) uint64 { return c.Bytes }},
		{"msgs", asCount, func(c Counters) uint64 { return c.Messages }},
	} {
		l.when(counts, send+count.name, float64(count.of(sent)), count.k)
		l.when(counts, recv+count.name, float64(count.of(received)), count.k)
	}
}

// layout lines up names and numbers. A line without a unit ends in a blank, as qperf's does.
func (l *lines) layout() (out string) {
	name, digits := 0, 0
	for _, line := range l.list {
		name = max(name, len(line.name))
		digits = max(digits, len(line.value.digits))
	}
	for _, line := range l.list {
		if line.text != "" || line.value == (number{}) {
			out += fmt.Sprintf("    %-*s  =  %s\n", name, line.name, line.text)
			continue
		}
		out += fmt.Sprintf("    %-*s  =  %*s %s", name, line.name, digits, line.value.digits, line.value.unit)
		if line.value.other != "" {
			out += " (" + line.value.other + ")"
		}
		out += "\n"
	}
	return out
}
