package perf

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/podlane/podlane/perf/stats"
)

var (
	aaRuns   = flag.Int("aa", 0, "runs of one path under three names (TestAA)")
	aaBudget = flag.Duration("aa-budget", time.Minute, "of each run")
)

// TestAA measures one and the same path under three names, as perf run and lab perf do, again and again. Whatever the machine
// does meanwhile, there is no difference to be found: of 20 runs at most 3 may have any verdict.
//
//	make bench-aa
func TestAA(t *testing.T) {
	if *aaRuns == 0 {
		t.Skip("measures for 20 minutes, only when told how often: make bench-aa")
	}
	paths := threeNames(t)
	wrong, rounds := 0, 0
	for i := range *aaRuns {
		e, err := Evaluate(t.Context(), Config{
			Paths: paths, Budget: *aaBudget, Duration: 200 * time.Millisecond, Warmup: 50 * time.Millisecond, Idle: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		var found []string
		for _, row := range e.Rows {
			if row.Verdict != "" && row.Verdict != stats.CannotTell {
				found = append(found, fmt.Sprintf("%s %s: %s (%.3f, p %.2g)", row.Path, row.Test, row.Verdict, row.RatioToNode, row.P))
			}
		}
		rounds += e.Rounds
		if len(found) > 0 {
			wrong++
		}
		t.Logf("run %d: seed %d, %d rounds, %d false verdicts %s", i+1, e.Seed, e.Rounds, len(found), strings.Join(found, "; "))
	}
	t.Logf("%d of %d runs with a false verdict, %d rounds a run", wrong, *aaRuns, rounds / *aaRuns)
	if wrong > max(1, 3**aaRuns/20) {
		t.Errorf("%d of %d runs have a false verdict", wrong, *aaRuns)
	}
}
