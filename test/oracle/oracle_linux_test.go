package oracle

import (
	"flag"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/test/oracle/history"
)

var (
	histories = flag.Int("histories", 10, "how many random histories to play")
	steps     = flag.Int("steps", 6, "steps of each history")
	seed      = flag.Uint64("seed", 0, "the first history's seed; 0 takes one from the clock")
)

func TestMain(m *testing.M) {
	klog.SetLogger(logr.Discard())
	nettest.Main(m)
}

func TestHistories(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "--version")
	first := *seed
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	t.Logf("%d histories of %d steps from -seed=%d", *histories, *steps, first)
	c := NewCoverage()
	for i := range *histories {
		h := history.Random(first+uint64(i), *steps)
		start := time.Now()
		found, err := Run(h, c)
		if err != nil {
			t.Errorf("seed %d: %v\n%s", h.Seed, err, h.YAML())
			continue
		}
		t.Log(h.Seed, time.Since(start), len(found))
		for _, m := range found {
			t.Errorf("seed %d: %s", h.Seed, m)
		}
	}
	t.Logf("\n%s", c.Table())
}
