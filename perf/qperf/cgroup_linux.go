package qperf

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// GroupTime is what the cgroup of one end's process used while it measured; on a cluster that is its container's. It is more
// than the measuring threads' own: the rest of the process too, and whatever else runs there.
type GroupTime struct {
	CPUTime
	Throttled float64 `json:"throttled,omitempty"` // seconds for which the cgroup's CPU limit held it up
}

// BothGroups are those of both ends; nil where a process is in no cgroup (version 2) but the root.
type BothGroups struct {
	Local  *GroupTime `json:"local,omitempty"`
	Remote *GroupTime `json:"remote,omitempty"`
}

// cgroups is where version 2 is mounted, in a container as on most machines.
const cgroups = "/sys/fs/cgroup"

// readGroup is nil in the root of all cgroups: its figures are the machine's.
func readGroup(root string) *GroupTime {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(text)) {
		path, is := strings.CutPrefix(strings.TrimSpace(line), "0::")
		dir := filepath.Join(root, path)
		if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); !is || err != nil { // the root has no type
			continue
		}
		if stat, err := os.ReadFile(filepath.Join(dir, "cpu.stat")); err == nil {
			return parseGroup(string(stat))
		}
	}
	return nil
}

func parseGroup(stat string) *GroupTime {
	g := &GroupTime{}
	names := map[string]*float64{"user_usec": &g.User, "system_usec": &g.System, "throttled_usec": &g.Throttled}
	for line := range strings.Lines(stat) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if to := names[name]; to != nil {
			v, _ := strconv.ParseFloat(value, 64)
			*to = v / 1e6
		}
	}
	return g
}

// since is what was added to the counters of g; nil where one of the two was not read.
func (g *GroupTime) since(before *GroupTime) *GroupTime {
	if g == nil || before == nil {
		return nil
	}
	return &GroupTime{g.minus(before.CPUTime), g.Throttled - before.Throttled}
}
