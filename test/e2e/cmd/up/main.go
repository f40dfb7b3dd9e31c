// Command up runs a real Kubernetes of several nodes on this machine, with Podlane
// installed from deploy/podlane.yaml, until it is interrupted. It leaves nothing
// behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/podlane/podlane/test/e2e/internal/control"
	"github.com/podlane/podlane/test/e2e/internal/machines"
)

func main() {
	runtime.LockOSThread()
	nodes := flag.Int("nodes", 2, "number of nodes")
	bare := flag.Bool("bare", false, "without Podlane: nodes that wait for a network")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := prepare(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "up:", err)
		os.Exit(1)
	}
	inside, status := machines.Enter()
	if !inside {
		os.Exit(status)
	}
	if err := up(ctx, *nodes, *bare); err != nil {
		fmt.Fprintln(os.Stderr, "up:", err)
		os.Exit(1)
	}
}

// prepare builds what is needed, where there is a network.
func prepare(ctx context.Context) error {
	return machines.Prepare(ctx, os.Stderr, func(ctx context.Context) (string, error) {
		return control.Build(ctx, os.Stderr, control.All()...)
	})
}

func up(ctx context.Context, nodes int, bare bool) error {
	c, err := machines.Up(ctx, machines.Prepared(nodes, os.Stderr))
	if err != nil {
		return err
	}
	if !bare {
		if err := c.Install(ctx); err != nil {
			return err
		}
	}
	fmt.Print(c.Usage())
	<-ctx.Done()
	runtime.KeepAlive(c) // what it holds open is what the nodes live by
	return nil
}
