package link

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// PodSpec is the wiring of one pod: a veth pair with one end in the pod.
//
//	pod namespace                          │ node
//	PodLink (PodMAC, Addrs/32 or /128) ────┼──── HostLink (HostMAC)
//	default via Gateways dev PodLink       │
//	neighbour Gateways → HostMAC           │ the rest is compiled state (overlay)
type PodSpec struct {
	HostLink string
	HostMAC  MAC
	PodLink  string // "eth0"
	PodMAC   MAC
	Addrs    []netip.Addr
	Gateways []netip.Addr // at most one a family
	MTU      int
}

// NetnsCookie gives the number by which BPF programs know the network namespace of
// a socket: another one for each namespace that there is until the machine starts
// anew.
func NetnsCookie(socket int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(socket, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("cookie of the network namespace (Linux 5.14): %w", err)
	}
	return cookie, nil
}

// AddPod makes the veth pair, one end in the namespace netns, and configures that
// end through podSocket, a NETLINK_ROUTE socket opened inside the namespace. So
// the caller needs CAP_NET_ADMIN alone and never enters the namespace. Both
// descriptors stay the caller's. The host's end is up with its MTU and MAC; its
// addresses, routes and neighbours are Apply's.
//
// After an error nothing of the pod's is left. A link of the name HostLink that
// exists already is an error, ErrNameInUse: DeletePod first.
func (h *Handle) AddPod(spec PodSpec, netns, podSocket int) error {
	pod, err := newConn(podSocket)
	if err != nil {
		return fmt.Errorf("pod's socket: %w", err)
	}
	host := Link{Kind: Veth, MTU: spec.MTU, MAC: spec.HostMAC}
	body := newVeth(spec.HostLink, host, spec.PodLink, spec.PodMAC, netns)
	h.known.make(spec.HostLink, host)
	err = h.conn.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
	if err != nil {
		h.known.unmake(spec.HostLink)
		return h.vethError(spec, err)
	}
	if err := pod.wire(spec); err != nil {
		return errors.Join(fmt.Errorf("pod's end of %s: %w", spec.HostLink, err), h.DeletePod(spec.HostLink))
	}
	return nil
}

func (h *Handle) vethError(spec PodSpec, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("link %s: %w: this kernel makes no veth links (CONFIG_VETH): %w", spec.HostLink, ErrNoFeature, err)
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("link %s: %w", spec.HostLink, err)
	}
	if _, lookup := h.conn.deviceByName(spec.HostLink); lookup == nil {
		return fmt.Errorf("link %s: %w", spec.HostLink, ErrNameInUse)
	}
	return fmt.Errorf("link %s in the pod's namespace: %w", spec.PodLink, ErrNameInUse)
}

// DeletePod removes the pair of which hostLink is one end, and all that is on it.
// A pair that is gone is no error; a link that is not ours is.
func (h *Handle) DeletePod(hostLink string) error {
	if err := h.conn.deleteLink(hostLink, nil); err != nil {
		return fmt.Errorf("link %s: %w", hostLink, err)
	}
	return nil
}

// wire configures the pod's end, in the order in which each step finds what it
// needs.
func (c *conn) wire(spec PodSpec) error {
	d, err := c.deviceByName(spec.PodLink)
	if err != nil {
		return fmt.Errorf("%s: %w", spec.PodLink, err)
	}
	if d.MAC != spec.PodMAC {
		return errors.New("the socket was not opened in the pod's namespace")
	}
	if err := c.upLoopback(); err != nil {
		return err
	}
	const create = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	for _, a := range spec.Addrs {
		p := netip.PrefixFrom(a, a.BitLen())
		if err := c.request(unix.RTM_NEWADDR, create, address(d.index, p)); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	if err := c.request(unix.RTM_NEWLINK, 0, setLink(d.index, 0, MAC{}, true)); err != nil {
		return fmt.Errorf("%s up: %w", spec.PodLink, err)
	}
	for _, g := range spec.Gateways {
		if err := c.request(unix.RTM_NEWNEIGH, create, neighbour(d.index, g, spec.HostMAC)); err != nil {
			return fmt.Errorf("neighbour %s: %w", g, err)
		}
		for _, r := range podRoutes(spec.PodLink, g) {
			if err := c.request(unix.RTM_NEWROUTE, create, route(r.Dst, r.Route, d.index)); err != nil {
				return fmt.Errorf("route %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

// podRoutes are the gateway, on link, and the default route by way of it. The
// second does without the first (OnLink); programs that look for it find it.
func podRoutes(dev string, gateway netip.Addr) []RouteObject {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gateway.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return []RouteObject{
		{RouteKey{netip.PrefixFrom(gateway, gateway.BitLen())}, Route{Dev: dev}},
		{RouteKey{all}, Route{Dev: dev, Via: gateway, OnLink: true}},
	}
}

func (c *conn) upLoopback() error {
	lo, err := c.deviceByName("lo")
	if err == nil && lo.Down {
		err = c.request(unix.RTM_NEWLINK, 0, setLink(lo.index, 0, MAC{}, true))
	}
	if err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// CheckPod compares a pod's wiring with spec, on both sides, and names all that
// is missing or different. It changes nothing.
func (h *Handle) CheckPod(spec PodSpec, podSocket int) error {
	pod, err := newConn(podSocket)
	if err != nil {
		return fmt.Errorf("pod's socket: %w", err)
	}
	host, err := h.conn.deviceByName(spec.HostLink)
	if err != nil {
		return fmt.Errorf("link %s: %w", spec.HostLink, err)
	}
	end, err := pod.deviceByName(spec.PodLink)
	if err != nil {
		return fmt.Errorf("pod's link %s: %w", spec.PodLink, err)
	}
	return errors.Join(
		checkLink("link "+spec.HostLink, host, spec.HostMAC, spec.MTU),
		checkLink("pod's link "+spec.PodLink, end, spec.PodMAC, spec.MTU),
		pod.checkAddrs(end, spec), pod.checkNeighs(end, spec), pod.checkRoutes(end, spec))
}

func checkLink(what string, d device, mac MAC, mtu int) error {
	switch {
	case d.Kind != Veth:
		return fmt.Errorf("%s: is no veth", what)
	case d.Down:
		return fmt.Errorf("%s: is down", what)
	case d.MAC != mac:
		return fmt.Errorf("%s: has the address %s and not %s", what, d.MAC, mac)
	case d.MTU != mtu:
		return fmt.Errorf("%s: has MTU %d and not %d", what, d.MTU, mtu)
	}
	return nil
}

func (c *conn) checkAddrs(d device, spec PodSpec) error {
	found, err := c.addresses()
	if err != nil {
		return err
	}
	has := map[netip.Addr]bool{}
	for _, f := range found {
		has[f.prefix.Addr()] = has[f.prefix.Addr()] || f.index == d.index
	}
	var errs []error
	for _, a := range spec.Addrs {
		if !has[a] {
			errs = append(errs, fmt.Errorf("pod's link %s: address %s is missing", spec.PodLink, a))
		}
	}
	return errors.Join(errs...)
}

func (c *conn) checkNeighs(d device, spec PodSpec) error {
	r := reader{c, nil, NewState()}
	msgs, err := r.conn.dump(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg))
	if err != nil {
		return fmt.Errorf("list neighbours: %w", err)
	}
	has := map[netip.Addr]MAC{}
	for _, m := range msgs {
		if n, ok := parseNeigh(m); ok && n.index == d.index {
			has[n.dst] = n.mac
		}
	}
	var errs []error
	for _, g := range spec.Gateways {
		if has[g] != spec.HostMAC {
			errs = append(errs, fmt.Errorf("pod's link %s: permanent neighbour %s is not %s", spec.PodLink, g, spec.HostMAC))
		}
	}
	return errors.Join(errs...)
}

func (c *conn) checkRoutes(d device, spec PodSpec) error {
	var errs []error
	for _, g := range spec.Gateways {
		found, err := c.routes(familyOf(g), Protocol)
		if err != nil {
			return err
		}
		has := map[netip.Prefix]netip.Addr{}
		for _, r := range found {
			if r.index == d.index {
				has[r.dst] = r.Via
			}
		}
		for _, r := range podRoutes(spec.PodLink, g) {
			if via, ok := has[r.Dst]; !ok || via != r.Via {
				errs = append(errs, fmt.Errorf("pod's link %s: route %s is missing", spec.PodLink, r.Dst))
			}
		}
	}
	return errors.Join(errs...)
}
