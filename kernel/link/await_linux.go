package link

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// The wait for an address: mostly none at all, a few milliseconds on a busy node.
const (
	addrPoll  = 200 * time.Microsecond
	addrWaits = 500 * time.Millisecond
)

// AwaitPod waits, for at most half a second, until both ends take packets to
// their IPv6 addresses. The kernel answers "added" before that: the local route
// of a new IPv6 address is made by a work queue (addrconf_dad_work, also without
// duplicate address detection), and what arrives earlier is dropped, which costs a
// TCP connection its first second. It is for after Apply, which gives the host's
// end the gateway. There is no error: a gateway may be missing for a good reason.
func (h *Handle) AwaitPod(spec PodSpec, podSocket int) {
	deadline := time.Now().Add(addrWaits)
	h.conn.awaitLocal(spec.Gateways, deadline)
	if pod, err := newConn(podSocket); err == nil {
		pod.awaitLocal(spec.Addrs, deadline)
	}
}

// awaitLocal waits until the IPv6 ones of the addresses are local.
func (c *conn) awaitLocal(addrs []netip.Addr, deadline time.Time) {
	for _, a := range addrs {
		for a.Is6() && !c.local(a) && time.Now().Before(deadline) {
			time.Sleep(addrPoll)
		}
	}
}

// local says whether packets to the address are taken and not sent on.
func (c *conn) local(a netip.Addr) bool {
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[1] = familyOf(a), uint8(a.BitLen())
	m := message{header}
	m.addr(unix.RTA_DST, a)
	found, err := c.get(unix.RTM_GETROUTE, m.b)
	const kind = 7 // rtm_type
	return err == nil && len(found) > kind && found[kind] == unix.RTN_LOCAL
}
