package overlay

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/podlane/podlane/kernel/link"
)

// TestPodMTU_large: the link's MTU only where nothing may be in VXLAN.
func TestPodMTU_large(t *testing.T) {
	in := three(Auto) // n3 is behind a router
	in.Config.LargeMTU = true
	if got := PodMTU(in); got != 1450 {
		t.Errorf("with a peer behind VXLAN: %d", got)
	}
	in.Nodes = nodes(node("n1", "192.168.0.1", "10.244.1.0/24"), node("n2", "192.168.0.2", "10.244.2.0/24"))
	if got := PodMTU(in); got != 1500 {
		t.Errorf("all direct: %d", got)
	}
	in.Probed = &Probed{}
	if got := PodMTU(in); got != 1450 {
		t.Errorf("direct, but not tried: %d", got)
	}
	in.Probed = &Probed{Direct: map[Way]bool{{Node: "n2"}: true}}
	if got := PodMTU(in); got != 1500 {
		t.Errorf("all tried: %d", got)
	}
	in.Config.LargeMTU = false
	if got := PodMTU(in); got != 1450 {
		t.Errorf("without mtu max: %d", got)
	}
	s, _ := Compile(in)
	if l := s.Links[Device]; l.MTU != 1450 {
		t.Errorf("the VTEP has %d", l.MTU)
	}
}

// TestProbed_json keeps what it was.
func TestProbed_json(t *testing.T) {
	p := &Probed{Direct: map[Way]bool{{Node: "n 2"}: true, {Node: "n3", V6: true}: true}, SoftChecksum: true}
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	back := &Probed{}
	if err := json.Unmarshal(text, back); err != nil || !back.Equal(p) || back.Equal(&Probed{}) || back.Equal(nil) {
		t.Errorf("%s: %+v %v", text, back, err)
	}
	if err := json.Unmarshal([]byte(`{"direct":{"5 x":true}}`), back); err == nil {
		t.Error("a way of family 5")
	}
}

// TestCompile_untrusted: a peer on the segment whose way is not trusted is behind
// VXLAN, and its probe address is not.
func TestCompile_untrusted(t *testing.T) {
	in := three(Auto)
	in.Probed = &Probed{Direct: map[Way]bool{{Node: "n2", V6: true}: true}}
	s, _ := Compile(in)
	for cidr, dev := range map[string]string{"10.244.2.0/24": Device, "10.244.2.0/32": "eth0", "fd00:244:2::/64": "eth0"} {
		if got := s.Routes[link.RouteKey{Dst: netip.MustParsePrefix(cidr)}].Dev; got != dev {
			t.Errorf("%s: by %q, want %s", cidr, got, dev)
		}
	}
	if _, is := s.Routes[link.RouteKey{Dst: netip.MustParsePrefix("fd00:244:2::/128")}]; is {
		t.Error("a trusted way has a route for probes")
	}
}
