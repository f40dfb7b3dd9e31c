package qperf

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// burn uses 200 ms of CPU time, and prints what the process's cgroup used meanwhile.
func burn(root string) {
	runtime.LockOSThread()
	before, began := readGroup(root), threadCPU()
	for used := began; used.User+used.System < began.User+began.System+0.2; used = threadCPU() {
	}
	text, _ := json.Marshal(readGroup(root).since(before))
	fmt.Println(string(text))
}

// A process in a cgroup of its own is told what that used; in the root it is told nothing.
func TestReadGroup(t *testing.T) {
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		var fs unix.Statfs_t
		if root == "" && unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			root = dir
		}
	}
	if root == "" {
		t.Skip("needs cgroup2")
	}
	group, err := os.MkdirTemp(root, "podlane-test-")
	if err != nil {
		t.Skipf("no cgroup of our own (needs root): %v", err)
	}
	t.Cleanup(func() { _ = unix.Rmdir(group) })
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	for _, own := range []bool{true, false} {
		cmd := exec.Command(os.Args[0], "perf", "burn", root)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: own, CgroupFD: int(dir.Fd())}
		out, err := cmd.Output()
		var g *GroupTime
		if err != nil || json.Unmarshal(out, &g) != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if own && (g == nil || g.User+g.System < 0.19 || g.User+g.System > 0.5 || g.Throttled != 0) {
			t.Errorf("used 200 ms, and its cgroup %s", out)
		}
		if !own && readGroup(root) == nil && g != nil {
			t.Errorf("in the root: %s", out)
		}
	}
}

func TestParseGroup(t *testing.T) {
	const stat = "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 20\nnr_throttled 5\nthrottled_usec 250000\nnr_bursts 0\n"
	got := parseGroup(stat)
	if want := (GroupTime{CPUTime{1, 0.5}, 0.25}); *got != want {
		t.Errorf("%+v, want %+v", *got, want)
	}
	if d := parseGroup(stat).since(nil); d != nil {
		t.Errorf("since nothing: %+v", d)
	}
}
