package agent

import (
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/install"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/plan"
)

// TestSettled_leftovers: what another network left is named too where nothing can be applied, for which it may be the cause.
func TestSettled_leftovers(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "ip", "link", "add", "flannel.1", "type", "bridge")
	log := slog.New(slog.DiscardHandler)
	c := Config{Node: "n1", Log: log, StateDir: t.TempDir(), Runtime: install.Runtime{ConfDir: t.TempDir()}}
	a := newAgent(c, nil)
	a.plan = &plan.Plan{}
	if err := a.links.open(c, log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.links.close)
	var err error
	if a.pods, _, err = cni.Open(cni.Config{Node: "n1", Dir: t.TempDir(), BootID: "boot"}, a.links.handle); err != nil {
		t.Fatal(err)
	}
	a.settled(errors.New("another VXLAN link has VNI 1"))
	if found := strings.Join(a.serving.leftovers, "\n"); !strings.Contains(found, "flannel.1") {
		t.Errorf("left by others: %q", found)
	}
}
