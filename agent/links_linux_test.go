package agent

import (
	"strings"
	"testing"

	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/internal/nettest"
)

// A pod whose link somebody has deleted, and whose sandbox the runtime makes anew in another namespace, has
// its route as soon as its ADD is answered: what was applied for the link that has gone is not there.
func TestLinks_madeAnew(t *testing.T) {
	a := newBenchAgent(t, 3)
	for i := range 2 {
		r := podRequest(t, "same")
		r.Command = "ADD"
		a.answer([]*cni.Request{r})
		a.turned()
		if a.lastErr != nil {
			t.Fatal(a.lastErr)
		}
		al := a.pods.Allocations()[0]
		for _, addr := range al.Addrs {
			if out := nettest.Run(t, "ip", "route", "get", addr.String()); !strings.Contains(out, " dev "+al.Link+" ") {
				t.Errorf("ADD %d: %s", i, out)
			}
		}
		nettest.Run(t, "ip", "link", "delete", al.Link)
		a.links.doubt() // as the kernel's notice would have it: the link is wanted, and not there
		a.turned()
	}
}
