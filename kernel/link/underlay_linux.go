package link

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ReadUnderlay gives the link that has the address a, with its MTU and its global
// addresses, and whether its IPv6 default route comes from router advertisements.
func (h *Handle) ReadUnderlay(a netip.Addr) (Underlay, error) {
	addrs, err := h.conn.addresses()
	if err != nil {
		return Underlay{}, err
	}
	index := 0
	for _, f := range addrs {
		if f.prefix.Addr() == a {
			index = f.index
			break
		}
	}
	if index == 0 {
		return Underlay{}, fmt.Errorf("node address %s: no link of this machine has it", a)
	}
	all, err := h.conn.devices()
	if err != nil {
		return Underlay{}, err
	}
	d := all[index]
	if d.flags&unix.IFF_LOOPBACK != 0 {
		return Underlay{}, fmt.Errorf("node address %s: it is on the loopback link %s, which leads to no other node", a, d.name)
	}
	u := Underlay{Device: d.name, MTU: d.MTU}
	for _, f := range addrs {
		if f.index == index && f.scope == unix.RT_SCOPE_UNIVERSE {
			u.Addrs = append(u.Addrs, f.prefix)
		}
	}
	u.RARoute, err = h.conn.hasRARoute(index)
	return u, err
}

func (c *conn) hasRARoute(index int) (bool, error) {
	found, err := c.routes(unix.AF_INET6, unix.RTPROT_RA)
	for _, r := range found {
		if r.index == index && r.dst.Bits() == 0 {
			return true, err
		}
	}
	return false, err
}
