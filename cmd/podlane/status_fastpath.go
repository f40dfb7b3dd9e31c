package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/podlane/podlane/agent"
)

// printFastPath says whether the fast path is on, what keeps to the normal path,
// and how many packets took which.
func printFastPath(w io.Writer, s agent.FastPathStatus) {
	if !s.On {
		fmt.Fprintf(w, "fast path off: %s\n", s.Why)
		return
	}
	fmt.Fprintf(w, "fast path on (%s)\n", s.Attach)
	if s.Error != "" {
		fmt.Fprintf(w, "fast path, not applied: %s\n", s.Error)
	}
	var counts []string
	for _, c := range s.Counters {
		if c.Packets > 0 {
			counts = append(counts, fmt.Sprintf("%s %d", c.Reason, c.Packets))
		}
	}
	if len(counts) > 0 {
		fmt.Fprintln(w, "  packets:", strings.Join(counts, ", "))
	}
	for _, n := range s.Normal {
		fmt.Fprintln(w, "  on the normal path:", n)
	}
}
