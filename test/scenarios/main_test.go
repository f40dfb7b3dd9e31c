// Package scenarios does to the nodes of a lab what machines, people and other
// programs do to nodes, under packets, and asserts when the packets arrive again
// and that nothing else broke. What needs an API server is in test/e2e/real.
//
// The test program is also the one that runs in the pods: a server (server_test.go)
// and the sender of the packets (pulse_test.go).
package scenarios

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var asked = flag.Bool("scenarios", false, "run them: `make scenarios`")

// fastPath is the fast path of all scenes, and with on their translation at the socket.
var fastPath = flag.String("fast-path", "", "on, off; without: off in direct mode, as with the rights of deploy/podlane.yaml, else on where the kernel can")

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		verb, ok := map[string]func(context.Context, []string) error{"serve": serve, "pulse": pulse}[os.Args[1]]
		if ok {
			urgent()
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			if err := verb(ctx, os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
				os.Exit(1)
			}
			return
		}
	}
	code := m.Run()
	if dir := builds.dir; dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// urgent has servers and probes run before other programs of the machine, as far as
// the caller may: what is measured is not how busy it is.
func urgent() {
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, -15)
	_ = os.WriteFile("/proc/self/autogroup", []byte("-15"), 0) // each session's share, where the kernel has those
}

// root is the folder of the checkout.
const root = "../.."

var builds struct {
	sync.Mutex
	dir string
}

// build builds podlane and gives its path. overlay is the file with replaced
// sources that `go build -overlay` takes, "" for none.
func build(t *testing.T, name, overlay string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "podlane-scenarios-")
		if err != nil {
			t.Fatal(err)
		}
		builds.dir = dir
	}
	path := filepath.Join(builds.dir, name)
	args := []string{"build", "-o", path}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	cmd := exec.Command("go", append(args, "./cmd/podlane")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(cmd.Args, " "), err, out)
	}
	return path
}
