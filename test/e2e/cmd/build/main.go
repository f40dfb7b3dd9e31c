// Command build builds the programs of Kubernetes that the tests of this module
// run, and prints the folder they are in. It runs none of them. Without arguments
// it builds what the tests need.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/podlane/podlane/test/e2e/internal/control"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	programs := os.Args[1:]
	if len(programs) == 0 {
		programs = control.Programs
	}
	dir, err := control.Build(ctx, os.Stderr, programs...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
	fmt.Println(dir)
}
