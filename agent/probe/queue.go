package probe

import (
	"container/heap"
	"time"
)

// queue has the targets by when they are asked next (container/heap), so that a turn
// costs what is due and not what there is. Who is due longest comes first: nobody
// waits for ever behind those that are asked often.
type queue []*state

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	if c := q[i].at.Compare(q[j].at); c != 0 {
		return c < 0
	}
	return q[i].place < q[j].place
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push and Pop are heap.Interface's; targets come and go by Try alone.
func (q *queue) Push(x any) { *q = append(*q, x.(*state)) }

// Pop is Push's reverse.
func (q *queue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// due has a target asked at a time, or earlier where it would have been.
func (p *Prober) due(s *state, at time.Time) {
	if at.Before(s.at) {
		p.later(s, at)
	}
}

// later has a target asked at a time.
func (p *Prober) later(s *state, at time.Time) {
	s.at = at
	heap.Fix(&p.queue, s.index)
}
