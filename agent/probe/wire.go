package probe

import (
	"bytes"
	"encoding/binary"
)

// A probe is a UDP packet: eight bytes that say what it is, a number, and zeros up
// to the size that is tried. The answer is the same packet with other first bytes,
// so that it is never longer than what was asked, and never answered itself.
const head = 8 + 8

var (
	asks    = []byte("podlane?")
	answers = []byte("podlane!")
)

// question makes a probe of so many bytes of UDP payload.
func question(n uint64, size int) []byte {
	b := make([]byte, max(size, head))
	copy(b, asks)
	binary.BigEndian.PutUint64(b[8:], n)
	return b
}

func isQuestion(b []byte) bool { return len(b) >= head && bytes.HasPrefix(b, asks) }

// answer turns a question into its answer.
func answer(b []byte) []byte { copy(b, answers); return b }

// answered gives the number of the question that b answers.
func answered(b []byte) (uint64, bool) {
	if len(b) < head || !bytes.HasPrefix(b, answers) {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}
