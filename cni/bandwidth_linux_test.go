package cni

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
)

// request is an ADD as the server hands it over, for a loop in the test's own thread:
// queueing disciplines are those of the thread's namespace.
func request(t *testing.T, p pod, runtimeConfig string) *Request {
	t.Helper()
	socket, err := -1, error(nil)
	nettest.Do(t, p.ns, func() {
		socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(socket) })
	return &Request{
		Request: shim.Request{
			Verb: shim.VerbCNI, Command: "ADD", ContainerID: p.id, IfName: "eth0", Netns: p.path, Args: "K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + p.id,
			Config: json.RawMessage(`{"cniVersion":"1.1.0","name":"podlane","type":"podlane-cni","runtimeConfig":` + runtimeConfig + `}`),
		},
		NetnsFD: int(p.ns), SocketFD: socket, Deadline: time.Now().Add(time.Minute), reply: make(chan shim.Reply, 1),
	}
}

// TestAdd_bandwidth: a pod is limited when ADD is answered, and one that cannot be is
// refused with the reason, while those that start with it do.
func TestAdd_bandwidth(t *testing.T) {
	n := newNode(t, bothFamilies)
	l, _, err := open(n.dir, n.cidrs)
	if err != nil {
		t.Fatal(err)
	}
	defer l.handle.Close()
	const limits = `{"bandwidth": {"ingressRate": 8000000, "ingressBurst": 8000000, "egressRate": 80000000, "egressBurst": 8000000}}`
	slow, refused, plain := newPod(t, "slow"), newPod(t, "refused"), newPod(t, "plain")
	links := map[string]string{}
	for _, p := range []pod{slow, refused, plain} {
		links[p.id] = linkName(Key{p.id, "eth0"}, 0)
	}
	// Somebody else's link has the name: the kernel makes no IFB link.
	foreign := overlay.Shaper(links["refused"])
	nettest.Run(t, "ip", "link", "add", foreign, "type", "veth", "peer", "name", "other")

	requests := []*Request{request(t, slow, limits), request(t, refused, limits), request(t, plain, `{}`)}
	l.plugin.Handle(requests, l.apply)
	if r := <-requests[1].reply; r.Error == nil || !strings.Contains(r.Error.Msg, "default/refused") || !strings.Contains(r.Error.Msg, "egress-bandwidth") {
		t.Errorf("refused: %+v", r.Error)
	}
	for _, i := range []int{0, 2} {
		if r := <-requests[i].reply; r.Error != nil {
			t.Errorf("%s: %v", requests[i].ContainerID, r.Error)
		}
	}
	have, err := l.handle.Read()
	if err != nil {
		t.Fatal(err)
	}
	shaper := overlay.Shaper(links["slow"])
	host := have.Links[links["slow"]]
	if host.Shape.Rate != 1_000_000 || host.IngressTo != shaper || have.Links[shaper].Shape.Rate != 10_000_000 {
		t.Errorf("slow: %+v, %+v", host, have.Links[shaper])
	}
	if l := have.Links[links["plain"]]; l.Kind != link.Veth || l.Shape != (link.Shape{}) {
		t.Errorf("plain: %+v", l)
	}
	if _, there := have.Links[links["refused"]]; there || slices.Contains(n.records(), "refused-eth0.json") {
		t.Errorf("left of the refused pod: link %v, records %v", there, n.records())
	}
	nettest.Run(t, "ip", "link", "show", foreign)
}
