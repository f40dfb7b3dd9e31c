package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Read gives what is ours in the namespace: links of our name and group, what is
// on them (permanent neighbours and FDB entries; addresses but IPv6 link-local
// ones), routes of our protocol in the main table, and the present values of the
// given sysctls, as far as they exist.
func (h *Handle) Read(sysctls ...string) (State, error) {
	s := NewState()
	all, err := h.conn.devices()
	if err != nil {
		return s, err
	}
	for _, d := range all {
		if d.ours() {
			s.Links[d.name] = d.Link
		}
	}
	r := reader{h.conn, all, s}
	return s, errors.Join(r.addrs(), r.neighs(), r.fdb(), r.routes(), h.features(s), h.shapes(s, all), h.readSysctls(s, sysctls))
}

// Names gives the names of our links, without all that is on them.
func (h *Handle) Names() (map[string]bool, error) {
	all, err := h.conn.devices()
	names := map[string]bool{}
	for _, d := range all {
		if d.ours() {
			names[d.name] = true
		}
	}
	return names, err
}

func (h *Handle) readSysctls(s State, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	if err := h.sysctl.here(); err != nil {
		return err
	}
	for _, path := range paths {
		value, ok, err := h.sysctl.read(path)
		if err != nil {
			return fmt.Errorf("sysctl %s: %w", path, err)
		}
		if ok {
			s.Sysctls[path] = value
		}
	}
	return nil
}

type reader struct {
	conn *conn
	all  map[int]device
	s    State
}

// dev gives the name of one of our links.
func (r reader) dev(index int) (string, bool) {
	d, ok := r.all[index]
	return d.name, ok && d.ours()
}

func (r reader) addrs() error {
	found, err := r.conn.addresses()
	for _, a := range found {
		if dev, ok := r.dev(a.index); ok && !(a.prefix.Addr().Is6() && a.prefix.Addr().IsLinkLocalUnicast()) {
			r.s.Addrs[Addr{dev, a.prefix}] = struct{}{}
		}
	}
	return err
}

// ifaddr is an address as the kernel tells of it.
type ifaddr struct {
	index  int
	scope  uint8
	prefix netip.Prefix
}

func (c *conn) addresses() ([]ifaddr, error) {
	msgs, err := c.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg))
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	found := make([]ifaddr, 0, len(msgs))
	for _, m := range msgs {
		if a, ok := parseAddress(m); ok {
			found = append(found, a)
		}
	}
	return found, nil
}

func parseAddress(b []byte) (ifaddr, bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return ifaddr{}, false
	}
	var local, address netip.Addr
	for a := range attributes(b[unix.SizeofIfAddrmsg:]) {
		switch a.typ {
		case unix.IFA_LOCAL:
			local = a.addr()
		case unix.IFA_ADDRESS: // IPv6 has this one alone; on point-to-point links it is the peer's
			address = a.addr()
		}
	}
	if !local.IsValid() {
		local = address
	}
	index := int(binary.NativeEndian.Uint32(b[4:]))
	return ifaddr{index, b[3], netip.PrefixFrom(local, int(b[1]))}, local.IsValid()
}

func (r reader) neighs() error {
	msgs, err := r.conn.dump(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg))
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	for _, m := range msgs {
		n, ok := parseNeigh(m)
		dev, ours := r.dev(n.index)
		if ok && ours && n.dst.IsValid() {
			r.s.Neighs[NeighKey{dev, n.dst}] = n.mac
		}
	}
	return nil
}

func (r reader) fdb() error {
	for _, d := range r.all {
		if !d.ours() || d.Kind != VXLAN {
			continue
		}
		if err := r.fdbOf(d); err != nil {
			return fmt.Errorf("list the FDB of %s: %w", d.name, err)
		}
	}
	return nil
}

func (r reader) fdbOf(d device) error {
	header := make([]byte, unix.SizeofNdMsg)
	header[0] = unix.AF_BRIDGE
	binary.NativeEndian.PutUint32(header[4:], uint32(d.index))
	msgs, err := r.conn.dump(unix.RTM_GETNEIGH, header)
	if err != nil {
		return err
	}
	for _, m := range msgs {
		// Another port or VNI than the link's is never ours: shown without its
		// destination it differs from whatever is wanted, and is put right.
		if n, ok := parseNeigh(m); ok && n.index == d.index {
			if n.odd {
				n.dst = netip.Addr{}
			}
			r.s.FDB[FDBKey{d.name, n.mac}] = n.dst
		}
	}
	return nil
}

// neigh is a neighbour or an FDB entry as the kernel tells of it.
type neigh struct {
	index int
	dst   netip.Addr
	mac   MAC
	odd   bool // an FDB entry with a port or VNI of its own
}

// parseNeigh gives permanent entries only.
func parseNeigh(b []byte) (neigh, bool) {
	if len(b) < unix.SizeofNdMsg || binary.NativeEndian.Uint16(b[8:])&nudPermanent == 0 {
		return neigh{}, false
	}
	n := neigh{index: int(binary.NativeEndian.Uint32(b[4:]))}
	ok := false
	for a := range attributes(b[unix.SizeofNdMsg:]) {
		switch a.typ {
		case ndaDst:
			n.dst = a.addr()
		case ndaLLAddr:
			n.mac, ok = a.mac()
		case ndaPort, ndaVNI:
			n.odd = true
		}
	}
	return n, ok
}

func (r reader) routes() error {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := r.conn.routes(family, Protocol)
		if err != nil {
			return err
		}
		for _, f := range found {
			f.Dev = r.all[f.index].name
			if f.Unreachable {
				f.Dev = "" // IPv6 shows lo
			}
			r.s.Routes[RouteKey{f.dst}] = f.Route
		}
	}
	return nil
}

// kernelRoute is a route as the kernel tells of it.
type kernelRoute struct {
	dst   netip.Prefix
	index int
	Route
}

// routes gives the main table's routes of a protocol. The kernel filters: a node
// may have a full BGP table of someone else's.
func (c *conn) routes(family, protocol uint8) ([]kernelRoute, error) {
	header := make([]byte, unix.SizeofRtMsg)
	header[0], header[4], header[5] = family, unix.RT_TABLE_MAIN, protocol
	msgs, err := c.dump(unix.RTM_GETROUTE, header)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // IPv6 turned off at boot
	}
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var found []kernelRoute
	for _, m := range msgs {
		if r, ok := parseRoute(m); ok && m[4] == unix.RT_TABLE_MAIN && m[5] == protocol {
			found = append(found, r)
		}
	}
	return found, nil
}

func parseRoute(b []byte) (kernelRoute, bool) {
	if len(b) < unix.SizeofRtMsg {
		return kernelRoute{}, false
	}
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	dst := any4
	if b[0] == unix.AF_INET6 {
		dst = any6
	}
	r := kernelRoute{}
	r.Unreachable = b[7] == unix.RTN_UNREACHABLE
	r.OnLink = binary.NativeEndian.Uint32(b[8:])&unix.RTNH_F_ONLINK != 0
	for a := range attributes(b[unix.SizeofRtMsg:]) {
		switch a.typ {
		case unix.RTA_DST:
			dst = a.addr()
		case unix.RTA_OIF:
			r.index = int(a.u32())
		case unix.RTA_GATEWAY, unix.RTA_VIA:
			r.Via = a.addr()
		case unix.RTA_PREFSRC:
			r.Src = a.addr()
		case unix.RTA_METRICS:
			r.MTU = routeMTU(a.data)
		}
	}
	r.dst = netip.PrefixFrom(dst, int(b[1]))
	return r, dst.IsValid()
}

func routeMTU(metrics []byte) int {
	for a := range attributes(metrics) {
		if a.typ == unix.RTAX_MTU {
			return int(a.u32())
		}
	}
	return 0
}
