package memory

import (
	"runtime/debug"
	"testing"
)

// TestFrugal leaves to the environment what it says.
func TestFrugal(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	t.Setenv("GOGC", "77")
	Frugal()
	if is := debug.SetGCPercent(77); is != 77 {
		t.Errorf("GOGC is %d, and the environment says 77", is)
	}
	t.Setenv("GOGC", "")
	Frugal()
	if is := debug.SetGCPercent(77); is != growth {
		t.Errorf("GOGC is %d, want %d", is, growth)
	}
}
