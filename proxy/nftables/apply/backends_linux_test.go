package apply

import (
	"net/netip"
	"os/exec"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/conntrack"
	"github.com/podlane/podlane/proxy"
	iptables "github.com/podlane/podlane/proxy/iptables/apply"
)

// proxier is what brings a Table to the kernel: this package, or that of
// iptables, which has to behave in the same way.
type proxier interface {
	Apply(*proxy.Table, []netip.Addr) error
}

// eachBackend runs a test with every backend and family, each in a world of its
// own.
func eachBackend(t *testing.T, f func(t *testing.T, w *world, b proxier)) {
	t.Run("nftables", func(t *testing.T) {
		eachFamily(t, func(t *testing.T, w *world) {
			a, _ := applier(t)
			f(t, w, a)
		})
	})
	t.Run("iptables", func(t *testing.T) {
		eachFamily(t, func(t *testing.T, w *world) {
			if out, err := exec.Command("ip6tables-restore", "--test").CombinedOutput(); err != nil {
				t.Skipf("iptables does not work here: %v %s", err, out)
			}
			f(t, w, iptables.New(""))
		})
	})
}

// forgetFlows deletes the UDP flows of the tables before: a client's new socket may
// get the port of an old one, and with it the old one's flow.
func forgetFlows(t *testing.T) {
	t.Helper()
	c, err := conntrack.Dial(0)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, v6 := range []bool{false, true} {
		var flows []conntrack.Flow
		if err := c.Each(uint8(cluster.UDP), v6, func(f conntrack.Flow) { flows = append(flows, f) }); err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			if err := c.Delete(f); err != nil {
				t.Fatal(err)
			}
		}
	}
}
