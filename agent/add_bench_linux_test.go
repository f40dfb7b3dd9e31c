package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cni"
	"github.com/podlane/podlane/cni/shim"
	"github.com/podlane/podlane/internal/nettest"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/takeover"
)

// BenchmarkADD is a pod's ADD in the agent's loop, with all that the agent does on a
// node of so many nodes with a hundred pods: add-ms until the runtime has its answer,
// turn-ms until the loop waits again, what the kernel's notices bring about included.
func BenchmarkADD(b *testing.B) {
	for _, nodes := range []int{3, 1000} {
		b.Run(fmt.Sprintf("%dnodes", nodes), func(b *testing.B) { benchADD(b, nodes) })
	}
}

func benchADD(b *testing.B, nodes int) {
	a := newBenchAgent(b, nodes)
	notices, err := a.links.handle.Watch(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	var add, whole time.Duration
	settle := func() {
		for {
			select {
			case <-notices:
				began := time.Now()
				a.links.doubt()
				a.turned()
				whole += time.Since(began)
			case <-time.After(20 * time.Millisecond):
				return
			}
		}
	}
	request := func(command string, r *cni.Request) {
		r.Command = command
		began := time.Now()
		a.answer([]*cni.Request{r})
		add += time.Since(began)
		a.turned()
		whole += time.Since(began)
	}
	for i := range 100 {
		request("ADD", podRequest(b, fmt.Sprint("there-", i)))
	}
	settle()
	r, here := podRequest(b, "new"), len(a.pods.Allocations())
	var sum, sums time.Duration
	for b.Loop() {
		add, whole = 0, 0
		request("ADD", r)
		settle()
		sum, sums = sum+add, sums+whole
		b.StopTimer()
		if len(a.pods.Allocations()) != here+1 || a.lastErr != nil {
			b.Fatal("no pod: ", a.lastErr)
		}
		request("DEL", r)
		settle()
		a.pods.Prepare()
		b.StartTimer()
	}
	b.ReportMetric(float64(sum.Microseconds())/1e3/float64(b.N), "add-ms/op")
	b.ReportMetric(float64(sums.Microseconds())/1e3/float64(b.N), "turn-ms/op")
	b.ReportMetric(0, "ns/op") // most of it is waiting for notices
}

// newBenchAgent makes an agent on a node of its own, on one segment with all others,
// and has it apply the cluster.
func newBenchAgent(b testing.TB, nodes int) *Agent {
	nettest.New(b)
	for _, args := range [][]string{{"link", "add", "eth0", "type", "veth", "peer", "name", "far"}, {"link", "set", "far", "up"}, {"link", "set", "eth0", "up"},
		{"addr", "add", "10.100.0.1/16", "dev", "eth0"}, {"addr", "add", "fd00:100::1/64", "dev", "eth0", "nodad"}} {
		nettest.Run(b, "ip", args...)
	}
	c := Config{Node: "n0", Overlay: overlay.Config{Cluster: "c"}, RunDir: b.TempDir(), StateDir: b.TempDir(), Log: slog.New(slog.DiscardHandler),
		Operations: Operations{Mode: takeover.On}}
	a := newAgent(c, nil)
	if err := a.open(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(a.close)
	a.operations.decide(b.Context(), &a.services)
	all := cluster.NewBuilder()
	for i := range nodes {
		all.SetNode(&cluster.Node{Key: cluster.Key{Name: fmt.Sprint("n", i)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 100, byte(i / 250), byte(1 + i%250)}), netip.MustParseAddr(fmt.Sprintf("fd00:100::%x", i+1))},
			PodCIDRs:  []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + i/256), byte(i), 0}), 24), netip.MustParsePrefix(fmt.Sprintf("fd00:200:%x::/64", i))}})
	}
	a.snapshot = all.Publish()
	if a.turned(); a.lastErr != nil {
		b.Fatal(a.lastErr)
	}
	return a
}

// podRequest is a runtime's request for a pod with a namespace of its own.
func podRequest(b testing.TB, id string) *cni.Request {
	r := &cni.Request{Deadline: time.Now().Add(time.Hour), NetnsFD: int(nettest.Make(b))}
	r.Verb, r.ContainerID, r.IfName, r.Netns = shim.VerbCNI, id, "eth0", "/var/run/netns/"+id
	r.Config = []byte(`{"cniVersion":"1.1.0","name":"podlane","type":"podlane-cni"}`)
	var err error
	nettest.Do(b, netns.NsHandle(r.NetnsFD), func() {
		r.SocketFD, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Close(r.SocketFD) })
	return r
}
