package oracle

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/test/oracle/history"
)

// timeoutHistory is a Service with four endpoints and affinity for two seconds.
const timeoutHistory = `
seed: 1
steps:
- - zone: "-"
  - service:
      metadata: {name: svc0, namespace: d}
      spec: {clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], ports: [{port: 80, protocol: TCP, targetPort: 0}],
        sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}}
  - slice:
      addressType: IPv4
      metadata: {name: svc0-a, namespace: d, labels: {kubernetes.io/service-name: svc0}}
      ports: [{name: "", port: 8000, protocol: TCP}]
      endpoints: [{addresses: [10.245.0.1]}, {addresses: [10.245.0.2]}, {addresses: [10.245.0.3]}, {addresses: [10.245.0.4]}]
`

// TestAffinityTimeout: a client that comes again and again stays, however long; one
// that was away for longer than the timeout is anyone's.
func TestAffinityTimeout(t *testing.T) {
	nettest.New(t)
	nettest.Run(t, "nft", "--version")
	h, err := history.Parse([]byte(timeoutHistory))
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSides(h)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.step(h.Steps[0]); err != nil {
		t.Fatal(err)
	}
	gs := groups(targets([]*corev1.Service{h.Steps[0][1].Service}), nil)
	g := gs[slices.IndexFunc(gs, func(g *group) bool {
		return g.client.name == "outside" && g.to.Port() == 80 && g.to.Addr().String() == "10.96.0.10"
	})]
	const visitors = 24
	visited := [2][]netip.AddrPort{make([]netip.AddrPort, visitors), make([]netip.AddrPort, visitors)}
	round := func() [2]int {
		var moved [2]int
		for i := range visitors {
			to, err := s.visit(history.Nth(history.Allowed[0], uint32(i+1)), g)
			if err != nil {
				t.Fatal(err)
			}
			for side := range to {
				if visited[side][i] != to[side][0] {
					moved[side]++
				}
				visited[side][i] = to[side][0]
			}
		}
		return moved
	}
	round()
	for range 8 { // four seconds
		time.Sleep(500 * time.Millisecond)
		if moved := round(); moved != [2]int{} {
			t.Fatalf("clients that came back within the timeout have other endpoints: %v of %d (kube-proxy, Podlane)", moved, visitors)
		}
	}
	time.Sleep(3 * time.Second)
	if moved := round(); moved[0] == 0 || moved[1] == 0 {
		t.Errorf("after the timeout clients have other endpoints: %v of %d (kube-proxy, Podlane), want about three quarters", moved, visitors)
	}
}
