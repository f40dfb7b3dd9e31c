package explain_test

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// The fast path is on at both nodes but for the pod near. What a node translates
// takes the normal path there, both ways.
func TestExplain_fastPath(t *testing.T) {
	w := world(t, overlay.VXLAN, web)
	one, two := fastpath.NewState(), fastpath.NewState()
	one.Pods[netip.MustParseAddr("10.244.1.2")] = fastpath.Pod{}
	one.Pods[netip.MustParseAddr("10.244.1.3")] = fastpath.Pod{Normal: fastpath.OptOut}
	one.Peers[netip.MustParsePrefix("10.244.2.0/24")] = fastpath.Peer{}
	two.Pods[netip.MustParseAddr("10.244.2.2")] = fastpath.Pod{}
	two.Peers[netip.MustParsePrefix("10.244.1.0/24")] = fastpath.Peer{}
	w.Fast = map[string]*fastpath.State{"n1": &one, "n2": &two}
	for _, tc := range []struct {
		from, to string
		protocol cluster.Protocol
		want     string
	}{
		{"client", "10.244.2.2:8080", cluster.TCP, `delivered
10.244.2.2:8080 1 10.244.1.2 n1:pod n1:fast n1:route n1:vxlan n1:underlay n2:vxlan n2:fast n2:route n2:pod n2:arrive | n2:pod n2:fast n2:vxlan n1:fast n1:pod`},
		{"client", "10.244.2.2:8080", cluster.SCTP, `delivered
10.244.2.2:8080 1 10.244.1.2 n1:pod n1:route n1:vxlan n1:underlay n2:vxlan n2:route n2:pod n2:arrive | n2:pod n2:vxlan n1:pod`},
		{"client", "web:80", cluster.TCP, `delivered
10.244.1.3:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:pod n1:arrive | n1:pod n1:source n1:pod
10.244.2.2:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:vxlan n1:underlay n2:vxlan n2:fast n2:route n2:pod n2:arrive | n2:pod n2:fast n2:vxlan n1:source n1:pod`},
		{"client", "10.244.1.3:8080", cluster.TCP, `delivered
10.244.1.3:8080 1 10.244.1.2 n1:pod n1:route n1:pod n1:arrive | n1:pod n1:pod`},
		{"node/n1", "10.244.2.2:8080", cluster.TCP, `delivered
10.244.2.2:8080 1 10.244.1.1 n1:send n1:route n1:vxlan n1:underlay n2:vxlan n2:fast n2:route n2:pod n2:arrive | n2:pod n2:fast n2:vxlan`},
	} {
		a, err := explain.Explain(w, explain.Access{From: tc.from, To: tc.to, Protocol: tc.protocol})
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(a); got != tc.want {
			t.Errorf("%s to %s, %s:\n%s\nwant:\n%s", tc.from, tc.to, tc.protocol, got, tc.want)
		}
	}
}
