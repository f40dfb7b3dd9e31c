package dns

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/podlane/podlane/test/dns/peer"
)

// TestLabels: a slice whose labels change goes from one of podlane's watches to
// the other, or out of both, and what is answered follows each change.
func TestLabels(t *testing.T) {
	api, err := peer.StartAPI(t.Context(), programs, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer api.Stop()
	if err := api.Create(t.Context(), peer.Many(10)); err != nil { // service-9 is headless
		t.Fatal(err)
	}
	s, err := peer.StartPodlane(t.Context(), programs.Podlane, t.TempDir(), peer.Setup{Kubeconfig: api.Kubeconfig, Upstream: "none", Pods: "insecure"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	const path = "/apis/discovery.k8s.io/v1/namespaces/ns-9/endpointslices/service-9-x"
	r := rand.New(rand.NewPCG(*seed, 3))
	for round := range 15 {
		want := ""
		for range 1 + r.IntN(10) { // some changes at once: the last one counts
			labelled, byHand := r.IntN(2) == 0, r.IntN(2) == 0
			want = ""
			addr := fmt.Sprintf("10.7.%d.%d", round, 1+r.IntN(250))
			labels := map[string]any{"service.kubernetes.io/headless": nil, "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}
			if labelled {
				labels["service.kubernetes.io/headless"] = ""
			}
			if byHand {
				labels["endpointslice.kubernetes.io/managed-by"] = nil
			}
			if labelled || byHand {
				want = addr
			}
			patch := map[string]any{"metadata": map[string]any{"labels": labels}, "endpoints": []any{map[string]any{"addresses": []string{addr}}}}
			if err := api.Do(t.Context(), http.MethodPatch, path, patch); err != nil {
				t.Fatal(err)
			}
		}
		awaitAnswer(t, s.Addr, "service-9.ns-9.svc.cluster.local.", want)
	}
}

// awaitAnswer waits until a name has one address, or with "" none, and goes on
// having it.
func awaitAnswer(t *testing.T, addr, name, want string) {
	t.Helper()
	got, since := "", time.Time{}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		r, err := dns.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), addr)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, rr := range r.Answer {
			all = append(all, rr.(*dns.A).A.String())
		}
		got = strings.Join(all, " ")
		switch {
		case got != want:
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) > 300*time.Millisecond:
			return
		}
	}
	t.Fatalf("%s has %q, want %q", name, got, want)
}
