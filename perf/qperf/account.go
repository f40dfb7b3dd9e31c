package qperf

// window is how far back a datagram can be told from its own duplicate, in datagrams.
const window = 1 << 16

// An account is what became of the datagrams that the client sent within its clock: the
// difference between the two sides' byte counts would include what crossed the edges
// of two clocks that did not start together.
type account struct {
	counted    uint64 // client: sent within the clock
	unique     uint64 // server: received, each once
	duplicates uint64
	reordered  uint64 // came after a later one
	top        uint64 // highest sequence number
	seen       []uint64
}

func (a *account) note(seq uint64) {
	switch {
	case a.seen == nil:
		a.seen = make([]uint64, window/64)
		a.top = seq
	case seq > a.top:
		a.forget(seq)
		a.top = seq
	case a.top-seq >= window:
		a.reordered++
		a.unique++
		return
	case a.has(seq):
		a.duplicates++
		return
	default:
		a.reordered++
	}
	a.seen[seq%window/64] |= 1 << (seq % 64)
	a.unique++
}

func (a *account) has(seq uint64) bool { return a.seen[seq%window/64]&(1<<(seq%64)) != 0 }

// forget clears the places of those between the highest so far and seq.
func (a *account) forget(seq uint64) {
	if seq-a.top >= window {
		clear(a.seen)
		return
	}
	for s := a.top + 1; s <= seq; s++ {
		a.seen[s%window/64] &^= 1 << (s % 64)
	}
}
