package qperf

// Figures are what qperf makes of the two sides' counters, by its own formulas. Costs are
// CPU seconds of the whole machine, all that runs on it included, for a decimal GB.
type Figures struct {
	Latency       float64 `json:"latency,omitempty"`      // seconds, one way: half of that to and fro
	MessageRate   float64 `json:"message_rate,omitempty"` // 1/s; of a latency test: both ways together
	SendBandwidth float64 `json:"send_bandwidth,omitempty"`
	RecvBandwidth float64 `json:"recv_bandwidth,omitempty"` // bytes/s
	SendCost      float64 `json:"send_cost,omitempty"`      // s/GB
	RecvCost      float64 `json:"recv_cost,omitempty"`
	Local         CPU     `json:"local_cpu"`
	Remote        CPU     `json:"remote_cpu"`
}

// CPU is the share of the whole machine in use, 1 being one CPU; kernel includes steal, as in qperf.
type CPU struct {
	RealTime float64 `json:"real_time"` // seconds
	CPUTime  float64 `json:"cpu_time"`  // seconds
	Used     float64 `json:"used"`
	User     float64 `json:"user"`
	Intr     float64 `json:"intr"`
	Kernel   float64 `json:"kernel"`
	IOWait   float64 `json:"iowait"`
}

// Value is the one figure that stands for the test, in its Unit: bandwidth or packets as received,
// connections, or latency.
func (r *Result) Value() float64 {
	switch {
	case r.Figures == nil:
		return 0
	case r.Test.Latency():
		return r.Figures.Latency
	case r.Test == TCPConnect || r.Test == UDPPackets:
		return r.Figures.MessageRate
	case r.Search != nil:
		return r.Search.NoLoss
	}
	return r.Figures.RecvBandwidth
}

func figures(r *Result) *Figures {
	l, m := r.Local, r.Remote
	f := &Figures{Local: cpu(l), Remote: cpu(m)}
	lt, mt := f.Local.RealTime, f.Remote.RealTime
	if n := l.Received.Messages + m.Received.Messages; n > 0 {
		f.Latency = lt / float64(n)
	}
	if r.Latency != nil && (r.Test == UDPOpen || r.Test == UDPLatency && r.Loss != nil && r.Loss.Lost > 0) {
		f.Latency = r.Latency.Mean // of those answered: qperf's would hold the waiting for the others
	}
	if lt == 0 || mt == 0 {
		return f
	}
	// The rate takes the times crosswise: that of the other side where one received nothing.
	if r.Test == TCPConnect {
		f.MessageRate = float64(l.Received.Messages) / lt
		return f
	}
	f.MessageRate = bothWays(l.Received.Messages, m.Received.Messages, mt, lt)
	f.SendBandwidth = bothWays(l.Sent.Bytes, m.Sent.Bytes, lt, mt)
	f.RecvBandwidth = bothWays(l.Received.Bytes, m.Received.Bytes, lt, mt)
	switch {
	case l.Sent.Bytes > 0 && m.Sent.Bytes == 0 && l.Received.Bytes == 0:
		f.SendCost = f.Local.CPUTime * 1e9 / float64(l.Sent.Bytes)
	case m.Sent.Bytes > 0 && l.Sent.Bytes == 0 && m.Received.Bytes == 0:
		f.SendCost = f.Remote.CPUTime * 1e9 / float64(m.Sent.Bytes)
	}
	switch {
	case l.Received.Bytes > 0 && m.Received.Bytes == 0 && l.Sent.Bytes == 0:
		f.RecvCost = f.Local.CPUTime * 1e9 / float64(l.Received.Bytes)
	case m.Received.Bytes > 0 && l.Received.Bytes == 0 && m.Sent.Bytes == 0:
		f.RecvCost = f.Remote.CPUTime * 1e9 / float64(m.Received.Bytes)
	}
	return f
}

// bothWays is the rate of what one side, or both, counted.
func bothWays(local, remote uint64, localTime, remoteTime float64) float64 {
	switch {
	case remote == 0:
		return float64(local) / localTime
	case local == 0:
		return float64(remote) / remoteTime
	}
	return float64(local+remote) / ((localTime + remoteTime) / 2)
}

// cpu sums up one side's clocks. CPUTime goes through a float32, as in qperf: its last digits show it.
func cpu(s *Stat) CPU {
	var d [clocks]float64
	busy := float32(0)
	for i := range d {
		d[i] = float64(s.End[i] - min(s.Start[i], s.End[i]))
		if i != Real && i != Idle {
			busy += float32(d[i])
		}
	}
	if s.TicksPerSecond == 0 || d[Real] == 0 {
		return CPU{}
	}
	c := CPU{
		RealTime: d[Real] / float64(s.TicksPerSecond),
		CPUTime:  float64(busy / float32(s.TicksPerSecond)),
		User:     (d[User] + d[Nice]) / d[Real],
		Intr:     (d[IRQ] + d[SoftIRQ]) / d[Real],
		Kernel:   (d[Kernel] + d[Steal]) / d[Real],
		IOWait:   d[IOWait] / d[Real],
	}
	c.Used = c.User + c.Intr + c.Kernel + c.IOWait
	return c
}
