package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/podlane/podlane/agent"
	"github.com/podlane/podlane/kernel/bpf"
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
	if s.Untold != "" {
		fmt.Fprintf(w, "  conntrack is not told of pods' own connections: %s\n", s.Untold)
	}
	printCounts(w, "packets", s.Counters)
	for _, n := range s.Normal {
		fmt.Fprintln(w, "  on the normal path:", n)
	}
}

func printCounts(w io.Writer, of string, all []bpf.Count) {
	var counts []string
	for _, c := range all {
		if c.Packets > 0 {
			counts = append(counts, fmt.Sprintf("%s %d", c.Reason, c.Packets))
		}
	}
	if len(counts) > 0 {
		fmt.Fprintf(w, "  %s: %s\n", of, strings.Join(counts, ", "))
	}
}

// printSocketLB says whether Services are translated at the pods' sockets.
func printSocketLB(w io.Writer, s agent.SocketLBStatus) {
	switch {
	case !s.On:
		fmt.Fprintf(w, "translation at the socket off: %s\n", s.Why)
		return
	case s.Cgroup == "":
		fmt.Fprintln(w, "translation at the socket on, and no pod yet")
	default:
		fmt.Fprintf(w, "translation at the socket on: %d frontends, %s\n", s.Frontends, s.Cgroup)
	}
	if s.Error != "" {
		fmt.Fprintf(w, "translation at the socket, not applied: %s\n", s.Error)
	}
	printCounts(w, "connections", s.Counters)
	for _, n := range s.Rules {
		fmt.Fprintln(w, "  by the rules:", n)
	}
}
