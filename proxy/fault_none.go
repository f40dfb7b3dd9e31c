//go:build !oraclefault

package proxy

import "github.com/podlane/podlane/cluster"

// compileEntry is compileService. With the build tag oraclefault it has a fault,
// which test/oracle must find: fault_tag.go.
func compileEntry(s *cluster.Service, of *cluster.ServiceSlices, f facts) *Entry {
	return compileService(s, of, f)
}
