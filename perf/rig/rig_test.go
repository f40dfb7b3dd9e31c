package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/lab"
	"github.com/podlane/podlane/perf"
	"github.com/podlane/podlane/perf/qperf"
)

// program is the podlane that the tests run: a lab's nodes, agents and pods are all this program.
var program string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "podlane-rig-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	program = os.Getenv("PODLANE")
	if program == "" {
		program = filepath.Join(dir, "podlane")
		if out, err := exec.Command("go", "build", "-o", program, "github.com/podlane/podlane/cmd/podlane").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build podlane: %v\n%s", err, out)
			program = ""
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func needProgram(t *testing.T) {
	t.Helper()
	if testing.Short() || program == "" {
		t.Skip("needs podlane built (not -short; or PODLANE=path of it)")
	}
	out, err := exec.Command(program, "lab", "--name", "rig-probe", "up", "--nodes", "1").CombinedOutput()
	_ = exec.Command(program, "lab", "--name", "rig-probe", "down").Run()
	if err != nil {
		t.Skipf("no lab can be brought up here: %v: %s", err, out)
	}
}

// A whole run over both overlays: every path is measured and proven, and the parts add up.
func TestRun(t *testing.T) {
	needProgram(t)
	file := filepath.Join(t.TempDir(), "run.json")
	cmd := exec.Command(program, "lab", "perf", "--rounds", "2", "--duration", "100ms", "--tests", "tcp_lat,tcp_crr", "--paths", strings.Join(Further, ","), "--json", file)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := perf.Load(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(e.Paths) != 17 || len(e.Rows) != 34 || e.Invalid != "" || len(e.Steps) != 10 {
		t.Fatalf("%d paths, %d rows, %d steps, %q\n%s", len(e.Paths), len(e.Rows), len(e.Steps), e.Invalid, out)
	}
	for _, c := range e.Cells {
		// The agents' own probes pass the overlay too, a few in a measurement.
		service, overlay := c.Moved[perf.Connections] > 0, c.Moved[perf.Tunnelled] > 100
		path, variant, _ := strings.Cut(c.Path, "/")
		if c.Result.Test == qperf.Rest {
			continue
		}
		if want := path == perf.PodServicePod || path == Hairpin || path == NodePort || path == Balancer; service != want {
			t.Errorf("%s: through the Service: %v", c.Path, c.Moved)
		}
		// From a pod to a node only the answers are in it.
		if want := variant == "vxlan" && (path == PodNode || path == perf.PodPod || path == perf.PodServicePod || path == NodePod || path == Balancer); overlay != want {
			t.Errorf("%s: in the overlay: %v", c.Path, c.Moved)
		}
	}
	for _, s := range e.Steps {
		if s.Before <= 0 || s.Unit != s.Test.Unit() {
			t.Errorf("%+v", s)
		}
	}
	nothingLeft(t, cmd.Process.Pid)
}

// nothingLeft waits until no lab of the process is there any more.
func nothingLeft(t *testing.T, pid int) {
	t.Helper()
	o := Options{Name: fmt.Sprintf("%s-perf-%d", lab.DefaultName, pid)}
	var left []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		left = nil
		for _, name := range o.Names() {
			dir, err := lab.Dir(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(dir); err == nil {
				left = append(left, dir)
			}
		}
		if left = append(left, processesOf(o.Name)...); len(left) == 0 {
			return
		}
	}
	t.Errorf("left behind: %q", left)
}

// processesOf gives the command lines that name the labs.
func processesOf(name string) (lines []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil && strings.Contains(string(text), name) {
			lines = append(lines, strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	return lines
}

// Killed at ten points between its start and its end, by SIGKILL, SIGTERM and SIGINT in turn, a run leaves no process and no
// folder.
func TestRun_killedAtAnyPoint(t *testing.T) {
	needProgram(t)
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL, os.Interrupt.(syscall.Signal)}
	for i, after := range []time.Duration{5, 50, 150, 400, 800, 1300, 2000, 3000, 4500, 7000} {
		cmd := exec.Command(program, "lab", "perf", "--rounds", "3", "--duration", "200ms", "--tests", "tcp_lat")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(after * time.Millisecond)
		_ = cmd.Process.Signal(signals[i%len(signals)])
		_ = cmd.Wait()
		nothingLeft(t, cmd.Process.Pid)
		if t.Failed() {
			t.Fatalf("after %d ms, %s", after, signals[i%len(signals)])
		}
	}
}

func TestOptions_check(t *testing.T) {
	for name, o := range map[string]Options{
		"overlay": {Overlays: []string{"moon"}}, "overlay twice": {Overlays: []string{"vxlan", "vxlan"}},
		"path": {Further: []string{"moon"}}, "Services": {Services: []int{-1}}, "family": {Families: "ipx"},
	} {
		if _, err := Run(context.Background(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// The guard waits for the end of its input, and where there is no lab it has nothing to do.
func TestGuard(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	done := make(chan error, 1)
	go func() { done <- Guard(ctx, r, []string{"rig-none"}) }()
	select {
	case err := <-done:
		t.Errorf("ended before its input: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	w.Close()
	if err := <-done; err != nil && !errors.Is(err, lab.ErrNoLab) {
		t.Error(err)
	}
}
