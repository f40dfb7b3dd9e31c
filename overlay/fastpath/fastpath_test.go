package fastpath_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/kernel/link"
	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/overlay/fastpath"
)

// input is node n1 with two pods, n2 on its segment and n3 behind a router.
func input(t *testing.T, mode overlay.Mode) fastpath.Input {
	t.Helper()
	b := cluster.NewBuilder()
	for name, ips := range map[string][2]string{"n1": {"192.168.0.1", "10.244.1.0/24"}, "n2": {"192.168.0.2", "10.244.2.0/24"}, "n3": {"192.168.9.3", "10.244.3.0/24"}} {
		b.SetNode(&cluster.Node{
			Key: cluster.Key{Name: name}, Addresses: []netip.Addr{netip.MustParseAddr(ips[0])}, PodCIDRs: []netip.Prefix{netip.MustParsePrefix(ips[1])},
		})
	}
	in := overlay.Input{
		Config: overlay.Config{Mode: mode, Cluster: "c"}, Node: "n1", Nodes: b.Publish().Nodes,
		Underlay: link.Underlay{Device: "eth0", MTU: 1500, Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.0.1/24")}},
		Pods: []overlay.Pod{
			{Link: "pla", MAC: link.MAC{2, 1}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}},
			{Link: "plb", MAC: link.MAC{2, 2}, Addrs: []netip.Addr{netip.MustParseAddr("10.244.1.6")}, MTU: 1400},
		},
	}
	state, _ := overlay.Compile(in)
	return fastpath.Input{
		Overlay: in, Link: state, Off: map[string]fastpath.Reason{},
		Devices: map[string]fastpath.Device{"eth0": {Queued: true}, "pl-vxlan": {}, "pla": {}, "plb": {}},
	}
}

func check(t *testing.T, got, want any) {
	t.Helper()
	opts := []cmp.Option{cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmpopts.EquateEmpty()}
	if d := cmp.Diff(want, got, opts...); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// Peers take the way that the overlay has routes for, each with the MTU of its
// device.
func TestCompile_peers(t *testing.T) {
	near, far := netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("10.244.3.0/24")
	addrs := map[string]netip.Addr{"n2": netip.MustParseAddr("192.168.0.2"), "n3": netip.MustParseAddr("192.168.9.3")}
	direct := fastpath.Peer{Dev: "eth0", MTU: 1500, Via: netip.MustParseAddr("192.168.0.2"), From: []string{"eth0", "pl-vxlan"}}
	alone := direct // there is no VTEP
	alone.From = []string{"eth0"}
	tunnel := func(node string) fastpath.Peer {
		return fastpath.Peer{
			Dev: "pl-vxlan", MTU: 1450, Src: overlay.VTEPMAC("c", "n1"), Dst: overlay.VTEPMAC("c", node), From: []string{"pl-vxlan"},
			Outer: fastpath.Outer{Dev: "eth0", Src: netip.MustParseAddr("192.168.0.1"), Dst: addrs[node], VNI: 1, Port: 8472},
		}
	}
	for mode, want := range map[overlay.Mode]map[netip.Prefix]fastpath.Peer{
		overlay.Auto:   {near: direct, far: tunnel("n3")},
		overlay.VXLAN:  {near: tunnel("n2"), far: tunnel("n3")},
		overlay.Direct: {near: alone},
	} {
		if got := fastpath.Compile(input(t, mode)).Peers; len(got) != len(want) {
			t.Errorf("%s: %v, want %v", mode, got, want)
		} else {
			for cidr := range want {
				check(t, got[cidr], want[cidr])
			}
		}
	}
}

func TestCompile_pods(t *testing.T) {
	a, b := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.244.1.6")
	for name, test := range map[string]struct {
		change func(*fastpath.Input)
		a, b   fastpath.Reason
	}{
		"all":       {func(*fastpath.Input) {}, "", ""},
		"opt out":   {func(in *fastpath.Input) { in.Off["pla"] = fastpath.OptOut }, fastpath.OptOut, ""},
		"bandwidth": {func(in *fastpath.Input) { in.Off["plb"] = fastpath.Bandwidth }, "", fastpath.Bandwidth},
		"queued":    {func(in *fastpath.Input) { in.Devices["pla"] = fastpath.Device{Queued: true} }, fastpath.Shaped, ""},
		"filtered":  {func(in *fastpath.Input) { in.Devices["pla"] = fastpath.Device{Filtered: true} }, fastpath.Shaped, ""},
		"missing":   {func(in *fastpath.Input) { delete(in.Devices, "pla") }, fastpath.Missing, ""},
	} {
		in := input(t, overlay.Auto)
		test.change(&in)
		s := fastpath.Compile(in)
		if s.Normal["pla"] != test.a || s.Normal["plb"] != test.b {
			t.Errorf("%s: %v", name, s.Normal)
		}
		if (s.Devices["pla"] == fastpath.FromPod) != (test.a == "") || (s.Devices["plb"] == fastpath.FromPod) != (test.b == "") {
			t.Errorf("%s: programs at %v", name, s.Devices)
		}
		want := map[netip.Addr]fastpath.Pod{
			a: {Dev: "pla", MAC: link.MAC{2, 1}, MTU: 1450, Normal: test.a},
			b: {Dev: "plb", MAC: link.MAC{2, 2}, MTU: 1400, Normal: test.b},
		}
		if test.a == fastpath.Missing {
			delete(want, a)
		}
		check(t, s.Pods[a], want[a])
		check(t, s.Pods[b], want[b])
	}
}

// A device with a classifier of someone else's has no program, and no peer is
// reached past it: half of a flow on the fast path would be the other half's end
// where a firewall drops what conntrack finds invalid.
func TestCompile_filteredUplink(t *testing.T) {
	in := input(t, overlay.Auto)
	in.Devices["eth0"] = fastpath.Device{Filtered: true}
	s := fastpath.Compile(in)
	if s.Normal["eth0"] != fastpath.Shaped || len(s.Peers) != 1 || s.Devices["eth0"] != "" || s.Devices["pl-vxlan"] != fastpath.ToPod {
		t.Errorf("%+v", s)
	}
}

// An uplink without Ethernet headers has no program, and no peer is reached by it.
func TestCompile_bareUplink(t *testing.T) {
	in := input(t, overlay.Direct)
	in.Devices["eth0"] = fastpath.Device{Bare: true}
	if s := fastpath.Compile(in); s.Normal["eth0"] != fastpath.Bare || len(s.Peers) != 0 || s.Devices["eth0"] != "" || len(s.Pods) != 2 {
		t.Errorf("%+v", s)
	}
}

// The program encapsulates only what nothing on the normal path has to see. All the same the peer's
// packets take the fast path, by the VTEP.
func TestCompile_outer(t *testing.T) {
	far, node := netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("192.168.9.3/32")
	for name, test := range map[string]struct {
		change func(*fastpath.Input)
		out    bool
	}{
		"plain":     {func(*fastpath.Input) {}, true},
		"checksums": {func(in *fastpath.Input) { soft(in) }, false},
		"bare":      {func(in *fastpath.Input) { in.Devices["eth0"] = fastpath.Device{Bare: true} }, false},
		"no uplink": {func(in *fastpath.Input) { delete(in.Devices, "eth0") }, false},
		"others":    {func(in *fastpath.Input) { in.Devices["eth0"] = fastpath.Device{Filtered: true} }, true},
		"IPsec": {func(in *fastpath.Input) {
			in.IPsec = []fastpath.Selector{{Src: node, Dst: netip.MustParsePrefix("192.168.0.0/24")}}
		}, false},
		"queue": {func(in *fastpath.Input) { in.Devices[overlay.Device] = fastpath.Device{Queued: true} }, false},
	} {
		in := input(t, overlay.VXLAN)
		test.change(&in)
		p, is := fastpath.Compile(in).Peers[far]
		if !is || (p.Outer != fastpath.Outer{}) != test.out {
			t.Errorf("%s: %v %+v", name, is, p)
		}
	}
}

func soft(in *fastpath.Input) {
	vtep := in.Link.Links[overlay.Device]
	vtep.SoftChecksum = true
	in.Link.Links[overlay.Device] = vtep
}

// A peer between whose pods and ours an IPsec policy says something is not reached past
// it, whether directly or over VXLAN.
func TestCompile_ipsec(t *testing.T) {
	near, far, all := netip.MustParsePrefix("10.244.2.0/24"), netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("0.0.0.0/0")
	for name, test := range map[string]struct {
		policy fastpath.Selector
		out    bool // the near one is
		far    bool // the far one is
	}{
		"out":          {fastpath.Selector{Src: netip.MustParsePrefix("10.244.1.0/24"), Dst: near}, true, false},
		"in":           {fastpath.Selector{Src: near, Dst: netip.MustParsePrefix("10.244.1.7/32")}, true, false},
		"all":          {fastpath.Selector{Src: all, Dst: all}, true, true},
		"the node's":   {fastpath.Selector{Src: netip.MustParsePrefix("192.168.0.1/32"), Dst: all}, false, false},
		"another peer": {fastpath.Selector{Src: netip.MustParsePrefix("10.244.1.0/24"), Dst: far}, false, true},
		"IPv6":         {fastpath.Selector{Src: netip.MustParsePrefix("::/0"), Dst: netip.MustParsePrefix("::/0")}, false, false},
	} {
		in := input(t, overlay.Auto)
		in.IPsec = []fastpath.Selector{test.policy}
		s := fastpath.Compile(in)
		if _, in := s.Peers[near]; in == test.out || (s.Normal[near.String()] == fastpath.Ipsec) != test.out {
			t.Errorf("%s: %+v", name, s)
		}
		if _, in := s.Peers[far]; in == test.far {
			t.Errorf("%s: VXLAN: %+v", name, s)
		}
	}
}
