package qperf

import "time"

// Series is how a test went on: the messages that arrived in each part of its time. They are the server's, of a test whose
// figure is the client's the client's.
type Series struct {
	Every    float64  `json:"every"` // seconds
	Messages []uint64 `json:"messages"`
}

const (
	seriesStep = 100 * time.Millisecond
	seriesMost = 128 // parts; those of a longer test are longer
)

// A recorder notes how many messages there were at the end of each part.
type recorder struct {
	step time.Duration
	next time.Duration // the end of the part; 0 before the first message
	sums []uint64
}

func newRecorder() recorder { return recorder{step: seriesStep} }

// note is told of a time, counted from the clock's start, and of the messages that arrived before.
func (r *recorder) note(at time.Duration, messages uint64) {
	r.next = max(r.next, r.step)
	for r.step > 0 && at >= r.next {
		if r.sums = append(r.sums, messages); len(r.sums) == seriesMost {
			for i := range seriesMost / 2 {
				r.sums[i] = r.sums[2*i+1]
			}
			r.sums, r.step = r.sums[:seriesMost/2], 2*r.step
		}
		r.next = r.step * time.Duration(len(r.sums)+1)
	}
}

// add adds up two streams that went on at the same time.
func (r *recorder) add(o recorder) {
	r.sums = r.sums[:min(len(r.sums), len(o.sums))]
	if r.step != o.step {
		r.sums = nil
	}
	for i := range r.sums {
		r.sums[i] += o.sums[i]
	}
}

func (r *recorder) series() *Series {
	if len(r.sums) == 0 {
		return nil
	}
	s := &Series{Every: r.step.Seconds()}
	before := uint64(0)
	for _, n := range r.sums {
		s.Messages = append(s.Messages, n-before)
		before = n
	}
	return s
}

// Part is the test's figure by one part of its Series alone, in its Unit; false where nothing arrived that could tell it.
func (r *Result) Part(messages uint64) (float64, bool) {
	n := float64(messages)
	switch every := r.Series.Every; {
	case r.Test.Latency():
		return every / 2 / n, n > 0
	case r.Test.Unit() == "bytes/s":
		return n * float64(r.MsgSize) / every, true
	default:
		return n / every, true
	}
}
