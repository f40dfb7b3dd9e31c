package socket

import (
	"fmt"

	"github.com/podlane/podlane/kernel/bpf"
)

// reasons are the names of enum reason of socket.c, in its order.
var reasons = []string{"translated", "pass_client", "pass_service"}

// Counters reads how many connect() calls each reason has had since the maps were
// made.
func (h *Handle) Counters() ([]bpf.Count, error) {
	counts := make([]bpf.Count, len(reasons))
	for i, name := range reasons {
		var each []uint64
		if err := h.objects.PlReasons.Lookup(uint32(i), &each); err != nil {
			return nil, fmt.Errorf("bpf map reasons: %w", err)
		}
		counts[i] = bpf.Count{Reason: name, Packets: sum(each)}
	}
	return counts, nil
}

func sum(each []uint64) (n uint64) {
	for _, one := range each {
		n += one
	}
	return n
}
