// Command podlane is a Kubernetes cluster network in one binary.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/podlane/podlane/cni/shim"
)

func main() {
	if shim.Called() { // installed as the CNI plugin by a build without the shim
		os.Exit(shim.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr))
	}
	if asPlugin(os.Args[0]) {
		if status, is := plugin(os.Args[1:]); is {
			os.Exit(status)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args, os.Stdin, os.Stdout, os.Stderr))
}
