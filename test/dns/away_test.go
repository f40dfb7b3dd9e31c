package dns

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/podlane/podlane/test/dns/peer"
)

// TestAway: when the API server is gone, the last state is answered from.
func TestAway(t *testing.T) {
	api, err := peer.StartAPI(t.Context(), programs, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer api.Stop()
	objects := peer.Random(rand.New(rand.NewPCG(1, 1)))
	if err := api.Create(t.Context(), objects); err != nil {
		t.Fatal(err)
	}
	s, err := peer.StartPodlane(t.Context(), programs.Podlane, t.TempDir(), peer.Setup{Kubeconfig: api.Kubeconfig, Upstream: "none", Pods: "insecure"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	answers := func() (out []string) {
		for _, name := range objects.Services {
			for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV} {
				m := new(dns.Msg).SetQuestion(name+".svc.cluster.local.", typ)
				m.Id = 1 // the order of addresses follows from it
				r, err := dns.Exchange(m, s.Addr)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, r.String())
			}
		}
		return out
	}
	before := answers()
	api.Stop()
	time.Sleep(5 * time.Second)
	for i, now := range answers() {
		if now != before[i] {
			t.Errorf("before:\n%s\nnow:\n%s", before[i], now)
		}
	}
}
