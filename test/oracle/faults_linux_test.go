//go:build oraclefault

package oracle

import (
	"os"
	"testing"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/proxy"
	"github.com/podlane/podlane/test/oracle/history"
)

// TestFaults puts faults into Podlane's Compile, one after the other: each must be
// found. PODLANE_ORACLE_FAULT names one alone.
func TestFaults(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "--version")
	names := proxy.Faults()
	if one := os.Getenv("PODLANE_ORACLE_FAULT"); one != "" {
		names = []string{one}
	}
	if len(names) < 12 && os.Getenv("PODLANE_ORACLE_FAULT") == "" {
		t.Errorf("%d faults, there should be 12 at least", len(names))
	}
	defer func() { proxy.Fault = "" }()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			proxy.Fault = name
			n, m := findFault(t)
			if m == nil {
				t.Fatalf("not found in %d histories", n)
			}
			t.Logf("found in history %d: %s", n, m)
		})
	}
}

// findFault gives the first history that shows it, and a replay too: a packet that the machine lost finds nothing.
func findFault(t *testing.T) (int, *mismatch) {
	t.Helper()
	for n := range *histories {
		h := history.Random(*seed+uint64(n), *steps)
		found, err := anew(h)
		if err == nil && len(found) > 0 {
			found, err = again(h, anew)
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			return n + 1, &found[0]
		}
	}
	return *histories, nil
}
