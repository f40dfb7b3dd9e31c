package explain_test

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/explain"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
	"github.com/podlane/podlane/proxy/ebpf"
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

// A pod whose connections are translated at the socket: by TCP to a cluster IP it
// meets no translation, and the fast path applies.
func TestExplain_socket(t *testing.T) {
	w := world(t, overlay.VXLAN, web)
	one := fastpath.NewState()
	one.Pods[netip.MustParseAddr("10.244.1.2")] = fastpath.Pod{}
	one.Peers[netip.MustParsePrefix("10.244.2.0/24")] = fastpath.Peer{}
	w.Fast = map[string]*fastpath.State{"n1": &one}
	w.Sockets = map[string]*ebpf.Clients{"n1": {Pods: map[netip.Addr]bool{netip.MustParseAddr("10.244.1.2"): true, netip.MustParseAddr("10.244.1.3"): true}}}
	translated := `delivered
10.244.1.3:8080 1/2 10.244.1.2 n1:service n1:pod n1:route n1:pod n1:arrive | n1:pod n1:pod
10.244.2.2:8080 1/2 10.244.1.2 n1:service n1:pod n1:fast n1:route n1:vxlan n1:underlay n2:vxlan n2:route n2:pod n2:arrive | n2:pod n2:vxlan n1:fast n1:pod`
	normal := `delivered
10.244.1.3:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:pod n1:arrive | n1:pod n1:source n1:pod
10.244.2.2:8080 1/2 10.244.1.2 n1:pod n1:service n1:route n1:vxlan n1:underlay n2:vxlan n2:route n2:pod n2:arrive | n2:pod n2:vxlan n1:source n1:pod`
	for _, tc := range []struct {
		name   string
		change func()
		want   string
	}{
		{"translated", func() {}, translated},
		{"the frontend is the node's own", func() { w.Sockets["n1"].Own = []netip.Addr{netip.MustParseAddr("10.96.1.1")} }, normal},
		{"the pod takes no part", func() { w.Sockets["n1"] = &ebpf.Clients{} }, normal},
		{"not on at the node", func() { w.Sockets["n1"] = nil }, normal},
	} {
		tc.change()
		a, err := explain.Explain(w, explain.Access{From: "client", To: "web:80", Protocol: cluster.TCP})
		if err != nil {
			t.Fatal(err)
		}
		if got := describe(a); got != tc.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tc.name, got, tc.want)
		}
	}
}
