// Package newest is a channel of size one in which a newer value takes the place
// of one that nobody has taken yet. It is no queue: values are lost on purpose.
package newest

// Chan carries the newest value from one sender to one receiver. Make one with
// make(newest.Chan[V], 1).
type Chan[V any] chan V

// Send puts v there and never blocks. One goroutine at a time may send.
func (c Chan[V]) Send(v V) {
	for {
		select {
		case c <- v:
			return
		default:
		}
		select {
		case <-c:
		default:
		}
	}
}
