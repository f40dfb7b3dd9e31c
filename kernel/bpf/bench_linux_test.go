package bpf

import (
	"testing"

	"github.com/podlane/podlane/internal/nettest"
)

// What a pod more costs: a program at its device and an entry for each address.
func BenchmarkApply_pod(b *testing.B) {
	for _, attach := range []Attach{TCX, Clsact} {
		b.Run(string(attach), func(b *testing.B) {
			w := newWorld(b, attach)
			n1 := w.nodes[0]
			on := n1.last
			nettest.Do(b, n1.ns, func() {
				for b.Loop() {
					n1.applyFast(b, nothing())
					n1.applyFast(b, on) // of two pods, two addresses each, and the uplink and the VTEP
				}
			})
		})
	}
}
