package qperf

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/internal/nettest"
)

// TestMain lets the test binary stand for the podlane program: `BINARY perf client ...` and
// `BINARY perf server PORT`, each a process of its own, which a network namespace needs.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "perf" {
		if err := child(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	nettest.Main(m)
}

func child(what string, args []string) error {
	switch what {
	case "burn":
		burn(args[0])
		return nil
	case "client":
		inv, err := ParseArgs(args)
		if err != nil {
			return err
		}
		return inv.Run(context.Background(), os.Stdout)
	}
	port, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	s, err := Listen(ServerConfig{Port: port})
	if err != nil {
		return err
	}
	return s.Serve(context.Background())
}

// startServer runs our server as a process of its own, in the calling thread's namespace.
func startServer(t testing.TB, port int) {
	t.Helper()
	start(t, os.Args[0], "perf", "server", strconv.Itoa(port))
}

func start(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// client runs our client as a process of its own, in the calling thread's namespace.
func ourClient(t testing.TB, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, os.Args[0], append([]string{"perf", "client"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("perf client %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
