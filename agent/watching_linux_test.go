package agent

import (
	"context"
	"errors"
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
	"github.com/podlane/podlane/kernel/bpf"
	"github.com/podlane/podlane/kernel/link"
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
			for end := time.Now().Add(10 * time.Second); !hasEnded(a); {
				if time.Now().After(end) {
					t.Fatal("the watcher has not ended, so the test shows nothing")
				}
				nettest.Run(t, "ip", "link", "add", "burst", "type", "veth", "peer", "name", "tsrub")
				nettest.Run(t, "ip", "link", "del", "burst")
			}
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

// hasEnded says whether a watcher of links has, while the loop runs.
func hasEnded(a *Agent) bool {
	told := make(chan bool)
	a.questions <- func() { told <- !a.links.changes.logged.IsZero() }
	return <-told
}

// TestWatching_refused: the kernel does not let IPsec policies be watched. The fast path is
// not looked at anew for each try, and these become rare.
func TestWatching_refused(t *testing.T) {
	a := newBenchAgent(t, 3)
	mark := &link.State{}
	tries := 0
	a.fast.link = mark
	a.fast.policies = watching{log: a.log, open: func(ctx context.Context) (<-chan error, error) {
		tries++
		return unprivileged(func() (<-chan error, error) { return bpf.WatchIPsec(ctx) })
	}}
	a.fast.policies.again = time.After(0)
	looping(t, a)
	time.Sleep(4 * watchPause) // tries at 0, 1 and 3 s
	told := make(chan struct{})
	a.questions <- func() {
		if a.fast.link != mark || tries < 2 || tries > 3 || a.fast.policies.notices != nil {
			t.Errorf("%d tries, want 2 or 3; looked anew: %v", tries, a.fast.link != mark)
		}
		for range 10 {
			a.fast.policies.reopen(t.Context())
		}
		if p := a.fast.policies.pause; p != linksEvery {
			t.Errorf("a pause of %s after many tries", p)
		}
		a.fast.policies.open = bpf.WatchIPsec
		a.fast.policies.again = time.After(0)
		close(told)
	}
	<-told
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		anew := make(chan bool)
		a.questions <- func() { anew <- a.fast.link == nil && a.fast.policies.pause == watchPause }
		if <-anew {
			return
		}
		if time.Now().After(end) {
			t.Fatal("watched again, and nothing is looked at anew")
		}
	}
}

// unprivileged has the calling thread do something without its rights.
func unprivileged[V any](do func() (V, error)) (v V, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var all, none [2]unix.CapUserData
	if err := unix.Capget(&header, &all[0]); err != nil {
		return v, err
	}
	none[0].Permitted, none[1].Permitted = all[0].Permitted, all[1].Permitted
	none[0].Inheritable, none[1].Inheritable = all[0].Inheritable, all[1].Inheritable
	if err := unix.Capset(&header, &none[0]); err != nil {
		return v, err
	}
	v, err = do()
	return v, errors.Join(err, unix.Capset(&header, &all[0]))
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
