package qperf

import (
	"net/netip"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/podlane/podlane/perf/stats"
)

// A Result is one test as measured: both sides' raw counters, qperf's figures made of them,
// and what the extension adds. Its JSON form is what `podlane perf client --json` prints.
type Result struct {
	Version  int           `json:"version"` // of this form: 1
	Test     Test          `json:"test"`
	Server   string        `json:"server"`
	MsgSize  int           `json:"msg_size,omitempty"` // bytes
	Port     int           `json:"port,omitempty"`     // data port
	Time     float64       `json:"time,omitempty"`     // seconds asked for
	Warmup   float64       `json:"warmup,omitempty"`   // seconds before the clock
	Figures  *Figures      `json:"figures,omitempty"`
	Local    *Stat         `json:"local,omitempty"`
	Remote   *Stat         `json:"remote,omitempty"`
	Path     PathFacts     `json:"path"`
	Latency  *Distribution `json:"latency,omitempty"` // latency tests
	Loss     *Loss         `json:"loss,omitempty"`    // UDP tests
	Search   *Search       `json:"search,omitempty"`  // udp_max
	Open     *Open         `json:"open,omitempty"`    // udp_open
	Series   *Series       `json:"series,omitempty"`  // of udp_open and udp_max there is none
	Streams  int           `json:"streams,omitempty"` // tcp_streams
	Engine   *Engine       `json:"engine,omitempty"`
	Groups   *BothGroups   `json:"cgroup,omitempty"`
	Drops    *BothDrops    `json:"drops,omitempty"`
	Conf     *Machines     `json:"conf,omitempty"`
	Facts    *BothFacts    `json:"facts,omitempty"` // conf with a server of our own kind
	Extended bool          `json:"extended"`        // the server is of our own kind

	timeout time.Duration
	sockBuf int
}

// Machines are the answers to conf.
type Machines struct {
	Local  Machine `json:"local"`
	Remote Machine `json:"remote"`
}

// PathFacts are the addresses that a test really used.
type PathFacts struct {
	Control     netip.AddrPort `json:"control"` // the server's control port
	Local       netip.AddrPort `json:"local,omitzero"`
	Data        netip.AddrPort `json:"data,omitzero"`
	SeenByPeer  netip.AddrPort `json:"seen_by_peer,omitzero"` // Local as the server saw it: other where it was translated
	PeerLocal   netip.AddrPort `json:"peer_local,omitzero"`   // Data as the server had it: other through a Service
	MTU         int            `json:"mtu,omitempty"`         // the kernel's for the way there, bytes
	Retransmits uint32         `json:"retransmits,omitempty"` // segments the client sent again, warm-up included
}

// FittingDatagram is the payload in bytes that goes over the path in one piece, at most FittingDatagram.
func (p PathFacts) FittingDatagram() int {
	headers := 28
	if p.Control.Addr().Is6() {
		headers = 48
	}
	if fit := p.MTU - headers; fit > 0 {
		return min(fit, FittingDatagram)
	}
	return FittingDatagram
}

// Distribution is the time of one way, half of that to and fro, in seconds.
type Distribution struct {
	Count uint64  `json:"count"`
	Mean  float64 `json:"mean"`
	Min   float64 `json:"min"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p99_9"`
	Max   float64 `json:"max"`
	// Curve is pairs of a part of the messages (0.99) and the time that so many took at most, to the last one.
	Curve [][2]float64 `json:"curve,omitempty"`
	// HDR is the whole histogram of round trips in nanoseconds, in HdrHistogram's V2
	// compressed form, base64: histograms of several runs can be added up.
	HDR string `json:"hdr,omitempty"`
}

// Loss is what happened to the datagrams sent within the client's clock.
type Loss struct {
	Sent       uint64  `json:"sent"`
	Lost       uint64  `json:"lost"`
	Fraction   float64 `json:"fraction"`
	Duplicates uint64  `json:"duplicates"`
	Reordered  uint64  `json:"reordered"`
	Wait       float64 `json:"wait,omitempty"` // seconds that udp_lat waited for replies that did not come
	Low        float64 `json:"low"`            // 95 % interval of Fraction (Wilson's), were each lost by chance
	High       float64 `json:"high"`
	Exact      bool    `json:"exact"` // told by sequence numbers; else by the two counts, whose clocks differ a little
}

// Packets is how many packets have carried what both ends received, at least: a stream's are as long as the kernel
// lets them grow (GSO), and half of that many are enough, as it may be told to let them grow longer.
func (r *Result) Packets() uint64 {
	switch {
	case r.Remote == nil:
		return 0
	case r.Test == TCPBandwidth || r.Test == TCPStreams:
		return r.Remote.Received.Bytes >> 17
	}
	n := r.Remote.Received.Messages
	if r.Local != nil {
		n += r.Local.Received.Messages // the answers
	}
	return n
}

// Engine is the CPU time that the two ends' measuring threads themselves used.
type Engine struct {
	Local  CPUTime `json:"local"`
	Remote CPUTime `json:"remote"`
}

func (c *client) result() *Result {
	r := &Result{Version: 1, Test: c.test, Server: c.options.Server, Path: c.path, timeout: c.options.Timeout, sockBuf: c.options.SockBuf, Extended: c.own}
	if c.test != Conf {
		r.MsgSize, r.Time = c.options.MsgSize, c.options.Time.Seconds()
	}
	if c.test == TCPStreams {
		r.Streams = c.options.Streams
	}
	if c.own {
		r.Warmup = c.options.Warmup.Seconds()
	}
	return r
}

// learn fills in what the flow and the server's note have to say.
func (r *Result) learn(f *flow, note *serverNote, drops Drops) {
	if !r.Test.UDP() {
		r.Path.Retransmits = f.retransmits
	}
	if note != nil {
		r.Path.SeenByPeer, r.Path.PeerLocal = note.Peer, note.Local
		r.Engine = &Engine{Local: f.engine, Remote: note.Engine}
		r.Drops = &BothDrops{Local: drops, Remote: note.Drops}
		r.Series = note.Series
	}
	if r.Test.Latency() {
		r.Latency = NewDistribution(f.ping.rtt)
	}
	switch r.Test {
	case TCPLatency, UDPLatency, TCPConnect:
		r.Series = f.parts.series()
	}
	switch r.Test {
	case UDPBandwidth, UDPPackets:
		r.Loss = blastLoss(f, r.Remote.Received.Messages, note)
	case UDPLatency:
		r.Loss = &Loss{Sent: f.sent.Messages, Lost: f.ping.lost, Wait: f.ping.lostWait.Seconds(), Exact: true}
	case UDPOpen:
		r.Loss = &Loss{Sent: f.sent.Messages, Lost: f.sent.Messages - min(f.sent.Messages, f.account.unique), Exact: true,
			Duplicates: f.account.duplicates, Reordered: f.account.reordered}
		r.Open = f.open
	}
	if r.Loss != nil && r.Loss.Sent > 0 {
		r.Loss.Fraction = float64(r.Loss.Lost) / float64(r.Loss.Sent)
		r.Loss.Low, r.Loss.High = stats.Proportion(r.Loss.Lost, r.Loss.Sent, 0.95)
	}
	r.Figures = figures(r)
}

func blastLoss(f *flow, received uint64, note *serverNote) *Loss {
	l := &Loss{Sent: f.sent.Messages}
	if note != nil && f.size >= headerSize {
		l.Sent, received, l.Exact = f.account.counted, note.Unique, true
		l.Duplicates, l.Reordered = note.Duplicates, note.Reordered
	}
	l.Lost = l.Sent - min(received, l.Sent)
	return l
}

// NewDistribution reads a histogram of round trips in nanoseconds.
func NewDistribution(h *hdrhistogram.Histogram) *Distribution {
	way := func(rtt int64) float64 { return float64(rtt) / 2e9 }
	d := &Distribution{Count: uint64(h.TotalCount()), Mean: h.Mean() / 2e9, Min: way(h.Min()), Max: way(h.Max())}
	for q, to := range map[float64]*float64{50: &d.P50, 90: &d.P90, 99: &d.P99, 99.9: &d.P999} {
		*to = way(h.ValueAtQuantile(q))
	}
	text, _ := h.EncodeV2() // into memory: cannot fail
	d.HDR = string(text)
	return d
}

// Curve reads a histogram of round trips for a plot that shows its tail: ever finer towards the slowest message.
func Curve(h *hdrhistogram.Histogram) (points [][2]float64) {
	for _, q := range []float64{0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999, 0.99995, 0.99998, 0.99999} {
		if rest := (1 - q) * float64(h.TotalCount()); rest < 1 {
			break // no message is so rare
		}
		points = append(points, [2]float64{q, float64(h.ValueAtQuantile(100*q)) / 2e9})
	}
	return points
}
