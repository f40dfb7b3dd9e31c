// Package e2e has the tests that need a real control plane. It has no code of its
// own.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/podlane/podlane/test/e2e/internal/control"
)

// bin is the folder with the programs of Kubernetes.
var bin string

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		fmt.Println("skipped, for they need a control plane (-short): all tests of test/e2e")
		os.Exit(0)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	var err error
	if bin, err = control.Build(ctx, os.Stderr, control.Programs...); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
