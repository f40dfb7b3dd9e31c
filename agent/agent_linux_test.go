package agent

import (
	"log/slog"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/internal/nettest"
)

// TestApply_nothingCompiled: where the links cannot be read at the first Snapshot,
// apply has an error and no Plan, and is to be called again.
func TestApply_nothingCompiled(t *testing.T) {
	nettest.New(t)
	log := slog.New(slog.DiscardHandler)
	a := &Agent{config: Config{Node: "n1"}, log: log, snapshot: cluster.NewBuilder().Publish(),
		dns: newLocalDNS(cluster.Key{}, log), probing: newProbing(log)}
	if err := a.links.open(Config{StateDir: t.TempDir()}, log); err != nil {
		t.Fatal(err)
	}
	var err error
	if a.pods, _, err = cni.Open(cni.Config{Node: "n1", Dir: t.TempDir(), BootID: "boot"}, a.links.handle); err != nil {
		t.Fatal(err)
	}
	a.links.close()
	for range 2 {
		err = a.apply()
	}
	if err == nil || a.plan != nil || a.failures != 2 {
		t.Errorf("error %v, plan %v, failures %d", err, a.plan, a.failures)
	}
}
