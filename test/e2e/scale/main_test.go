// Package scale measures an agent and a DNS server in a big cluster: a real
// kube-apiserver with simulated objects. It has no code of its own.
package scale

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/podlane/podlane/test/e2e/internal/control"
)

var (
	measure  = flag.Bool("scale", false, "measure; without it nothing is done")
	nodes    = flag.Int("nodes", 1000, "nodes")
	services = flag.Int("services", 5000, "Services of four endpoints each")
	rest     = flag.Duration("rest", 2*time.Minute, "how long to look at rest")
	bin      string // the programs of Kubernetes
	podlane  string // ours
)

// inside marks the program that runs in a network namespace of its own, with all that
// it starts: the agent is to touch no other.
const inside = "PODLANE_SCALE_INSIDE"

func TestMain(m *testing.M) {
	flag.Parse()
	if !*measure {
		fmt.Println("skipped, for it is a measurement of some minutes: -scale, or make bench-scale")
		os.Exit(0)
	}
	if os.Getenv(inside) != "" {
		bin, podlane = os.Getenv("PODLANE_SCALE_BIN"), os.Getenv("PODLANE_SCALE_PODLANE")
		os.Exit(m.Run())
	}
	os.Exit(outside())
}

// outside builds, which needs the network, and goes inside.
func outside() int {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	dir, err := os.MkdirTemp("", "podlane-scale")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	build := exec.CommandContext(ctx, "go", "build", "-o", dir+"/podlane", "./cmd/podlane")
	build.Dir, build.Stderr = "../../..", os.Stderr
	if err := build.Run(); err != nil {
		return fail(err)
	}
	programs, err := control.Build(ctx, os.Stderr, control.Programs...)
	if err != nil {
		return fail(err)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inside+"=1", "PODLANE_SCALE_BIN="+programs, "PODLANE_SCALE_PODLANE="+dir+"/podlane")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fail(err)
	}
	return 0
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "scale:", err)
	return 1
}
