package packet

import (
	"net/netip"
	"testing"

	"github.com/podlane/podlane/cluster"
)

func TestParse(t *testing.T) {
	for _, ends := range [][2]string{{"192.0.2.1:4000", "198.51.100.7:80"}, {"[2001:db8::1]:4000", "[2001:db8::7]:80"}} {
		for _, protocol := range []cluster.Protocol{cluster.TCP, cluster.UDP, cluster.SCTP} {
			want := Probe{Src: netip.MustParseAddrPort(ends[0]), Dst: netip.MustParseAddrPort(ends[1]), Protocol: protocol, Cookie: 0xdeadbeef}
			b := want.Bytes()
			if got, ok := Parse(b); !ok || got.Probe != want || got.Kind != Itself {
				t.Errorf("%v: got %v, %v", want, got, ok)
			}
			if got, ok := Parse(unreachable(b)); !ok || got.Probe != want || got.Kind != Unreachable {
				t.Errorf("%v, quoted: got %v, %v", want, got, ok)
			}
			for n := range b {
				Parse(b[:n]) // must not panic
			}
		}
	}
}

// unreachable is an ICMP error about a packet, without checksums.
func unreachable(b []byte) []byte {
	if b[0]>>4 == 4 {
		head := append([]byte{}, b[:20]...)
		head[9] = 1
		return append(append(head, 3, 3, 0, 0, 0, 0, 0, 0), b...)
	}
	head := append([]byte{}, b[:40]...)
	head[6] = 58
	return append(append(head, 1, 4, 0, 0, 0, 0, 0, 0), b...)
}
