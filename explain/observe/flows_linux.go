package observe

import (
	"errors"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/conntrack"
)

// TimedFlow is a conntrack entry with its beginning.
type TimedFlow struct {
	Protocol uint8           `json:"protocol"`
	Orig     conntrack.Tuple `json:"orig"`
	Reply    conntrack.Tuple `json:"reply"`
	// Since is when it began, where the kernel keeps that.
	Since time.Time `json:"since,omitzero"`
}

// AllFlows gives the TCP and UDP flows of the calling thread's network namespace.
func AllFlows() ([]TimedFlow, error) {
	conn, err := conntrack.Dial(0)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	list := []TimedFlow{}
	began := beginnings()
	for _, v6 := range []bool{false, true} {
		for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			err := conn.Each(protocol, v6, func(f conntrack.Flow) {
				list = append(list, TimedFlow{protocol, f.Orig, f.Reply, began[tupleKey(protocol, f.Orig.Src.String(), f.Orig.Dst.String())]})
			})
			if err != nil && !errors.Is(err, conntrack.ErrPartial) {
				return nil, err
			}
		}
	}
	return list, nil
}

func tupleKey(protocol uint8, src, dst string) string {
	return string(rune(protocol)) + src + " " + dst
}

// beginnings gives when flows began. kernel/conntrack reads no times, which only
// this needs.
func beginnings() map[string]time.Time {
	all := map[string]time.Time{}
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			continue
		}
		for _, f := range flows {
			if f.TimeStart == 0 {
				continue
			}
			src, ok1 := addrOf(f.Forward.SrcIP, f.Forward.SrcPort)
			dst, ok2 := addrOf(f.Forward.DstIP, f.Forward.DstPort)
			if ok1 && ok2 {
				all[tupleKey(f.Forward.Protocol, src, dst)] = time.Unix(0, int64(f.TimeStart))
			}
		}
	}
	return all
}

func addrOf(ip []byte, port uint16) (string, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port).String(), ok
}
