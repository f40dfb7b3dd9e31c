package oracle

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/test/oracle/history"
)

var (
	histories = flag.Int("histories", 15, "how many random histories to play")
	steps     = flag.Int("steps", 6, "steps of each history")
	tries     = flag.Int("tries", 150, "how often to play a mismatch again to make it shorter")
	most      = flag.Int("most", 3, "after how many histories with mismatches to stop")
	seed      = flag.Uint64("seed", 0, "the first history's seed; 0 takes one from the clock")
)

// forCoverage is from how many histories on every rule has to be met.
const forCoverage = 100

func init() {
	flag.BoolVar(&SocketLB, "socket-lb", false, "translate at the sockets of pods too (needs root)")
}

func TestMain(m *testing.M) {
	if ServeSockets() {
		return
	}
	klog.SetLogger(logr.Discard())
	nettest.Main(m)
}

// TestHistories plays random histories. A mismatch counts if a replay shows one too, and is printed as a history
// that is as short as can be; put it into testdata, and TestReplay plays it ever after. What no replay shows is
// printed and counted beside; more of it than in one history of a hundred is an error.
func TestHistories(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "--version")
	first := *seed
	if first == 0 {
		first = uint64(time.Now().Unix())
	}
	t.Logf("%d histories of %d steps from -seed=%d", *histories, *steps, first)
	c, bad, passing, start := NewCoverage(), 0, 0, time.Now()
	for i := range *histories {
		h := history.Random(first+uint64(i), *steps)
		found, err := Run(h, c)
		if err == nil && len(found) > 0 {
			once := found
			if found, err = again(h, anew); err == nil && len(found) == 0 {
				passing++
				pass(t, h, once)
			}
		}
		if err != nil {
			t.Errorf("seed %d: %v", h.Seed, err)
			bad++
		}
		if len(found) > 0 {
			report(t, h, found)
			bad++
		}
		if bad >= *most {
			t.Fatalf("%d histories show mismatches: the others are not played", bad)
		}
		if i%25 == 24 {
			t.Logf("%d histories in %v", i+1, time.Since(start).Round(time.Second))
		}
	}
	if SocketLB {
		t.Logf("%d connections of pods were translated at their sockets", c.AtSockets)
		if c.AtSockets < c.Tries/100 {
			t.Errorf("of %d tries too few to tell", c.Tries)
		}
	}
	t.Logf("%d histories, %d with mismatches, %d with some that no replay showed, in %v\n%s", *histories, bad, passing, time.Since(start).Round(time.Second), c.Table())
	if passing > max(1, *histories/100) {
		t.Errorf("%d histories of %d showed mismatches that no replay did: too many for packets that the machine lost", passing, *histories)
	}
	for n, sigmas := range c.Even[1].sigmas() {
		if sigmas > 6 {
			t.Errorf("of %d endpoints some are more likely than others: %v", n, c.Even[1][n])
		}
	}
	if *histories >= forCoverage {
		for _, r := range c.Rare() {
			t.Errorf("met too seldom: %s", r)
		}
	}
}

// pass prints mismatches that no replay showed.
func pass(t *testing.T, h history.History, once []mismatch) {
	t.Helper()
	for _, m := range once[:min(len(once), 10)] {
		t.Logf("seed %d, not shown again by %d replays and not counted: %s", h.Seed, replays, m)
	}
	h.Steps = h.Steps[:once[0].Step+1]
	t.Logf("seed %d is\n%s", h.Seed, h.YAML())
}

// report prints a mismatch, and the shortest history found that shows it.
func report(t *testing.T, h history.History, found []mismatch) {
	t.Helper()
	for _, m := range found[:min(len(found), 10)] {
		t.Errorf("seed %d: %s", h.Seed, m)
	}
	h.Steps = h.Steps[:found[0].Step+1]
	small := history.Shrink(h, *tries, func(h history.History) bool {
		shown, err := anew(h)
		return err == nil && slices.ContainsFunc(shown, func(m mismatch) bool {
			return m.Step == len(h.Steps)-1 && slices.ContainsFunc(found, func(f mismatch) bool { return f.Group == m.Group })
		})
	})
	shown, err := anew(small)
	t.Errorf("%d mismatches; shrunk, it shows %v %v\n%s", len(found), shown, err, small.YAML())
}

// TestReplay plays the histories in testdata, which once showed a mismatch. One in a
// file that begins with "# skip: " waits for the reason told there.
func TestReplay(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "--version")
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if reason, ok := strings.CutPrefix(strings.SplitN(string(text), "\n", 2)[0], "# skip: "); ok {
				t.Skip(reason)
			}
			h, err := history.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			once, err := anew(h)
			found := once
			if err == nil && len(once) > 0 {
				found, err = again(h, anew)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range found {
				t.Error(m)
			}
			if len(once) > 0 && len(found) == 0 {
				pass(t, h, once)
			}
		})
	}
}

func TestWanted(t *testing.T) {
	if len(Wanted) > 10 {
		t.Errorf("%d wanted differences, at most 10 may be", len(Wanted))
	}
	for _, w := range Wanted {
		if w.Reason == "" || !strings.HasPrefix(w.Link, "https://") {
			t.Errorf("%s: no reason or no link", w.Name)
		}
	}
}
