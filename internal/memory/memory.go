// Package memory keeps the processes small that run on every node. It measures nothing.
package memory

import (
	"os"
	"runtime/debug"
	"time"
)

// growth is GOGC of these processes: the garbage collector runs when the heap has grown
// by half, not when it has doubled. At rest they make little garbage, so that memory is
// what this saves and CPU time is not what it costs.
const growth = 50

// start is how long after a cluster was read first what that needed is no longer needed.
const start = 5 * time.Second

// Frugal sets how far the heap may grow, unless GOGC in the environment says it.
func Frugal() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
}

// Started is called when the cluster has been read: a little later, what the start
// needed and the rest does not goes back to the system.
func Started() { time.AfterFunc(start, debug.FreeOSMemory) }
