package agent

import (
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/internal/nettest"
)

// TestWatching: the watcher of links ends. The agent hears of changes again, of those on
// a link made anew too, and does not keep the machine busy.
func TestWatching(t *testing.T) {
	for name, harm := range map[string]func(testing.TB, int){"notices are lost": nettest.Overflow, "the socket fails": nettest.Break} {
		t.Run(name, func(t *testing.T) {
			a := newBenchAgent(t, 3)
			looping(t, a)
			neighbour := strings.Fields(nettest.Run(t, "ip", "neigh", "show", "dev", "pl-vxlan", "nud", "permanent"))[0]
			back := func(what string, deadline time.Duration) {
				t.Helper()
				for end := time.Now().Add(deadline); !strings.Contains(nettest.Run(t, "ip", "neigh", "show", "nud", "permanent"), neighbour+" dev pl-vxlan "); {
					if time.Now().After(end) {
						t.Fatal(what + " is not there again")
					}
					time.Sleep(10 * time.Millisecond)
				}
			}
			harm(t, nettest.Listener(t, unix.NETLINK_ROUTE))
			nettest.Run(t, "ip", "link", "del", "pl-vxlan")
			back("the link", 10*time.Second)
			time.Sleep(2 * watchPause) // until all that the kernel tells of it is told
			began := cpu()
			time.Sleep(time.Second)
			if used := cpu() - began; used > time.Second/2 {
				t.Errorf("%s of CPU in a second in which nothing happens", used)
			}
			nettest.Run(t, "ip", "neigh", "del", neighbour, "dev", "pl-vxlan")
			back("the neighbour", linksEvery/3)
		})
	}
}

// cpu is how long this process has run.
func cpu() time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// looping has an agent's loop run, in the test's namespace, until the test ends.
func looping(t *testing.T, a *Agent) {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	server, err := cni.Listen(filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if a.source, err = file.New(t.TempDir(), file.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := a.links.changes.begin(ctx); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread goes with the goroutine
		if err := netns.Set(here); err != nil {
			ended <- err
			return
		}
		ended <- a.loop(ctx, server)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
		_ = server.Serve(ctx) // closes it
		_ = here.Close()
	})
}
