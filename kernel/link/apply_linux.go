package link

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// Apply makes the changes, in their order. It goes on after an error, save with
// what depends on a link that could not be made, and gives all errors, each with
// the command that would have done the same. A veth that is not there is no error:
// its pod has ended, and what is wanted on it is passed over (see Missing). Applying the same operations again
// changes nothing. What is not ours is never touched: where it is in the way, that
// is an error (ErrNameInUse, ErrRouteInUse).
func (h *Handle) Apply(ops Ops) error {
	a := applier{conn: h.conn, sysctl: h.sysctl, known: h.known, index: map[string]int{}, failed: map[string]bool{}}
	var errs []error
	for _, op := range ops {
		if a.failed[op.Object.dev()] {
			continue
		}
		if err := a.apply(op); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", op, err))
		}
	}
	return errors.Join(errs...)
}

type applier struct {
	conn   *conn
	sysctl sysctls
	known  *known
	index  map[string]int
	failed map[string]bool // links that are wanted and are not there
	own    map[netip.Prefix]bool
	isHere bool
}

func (a *applier) apply(op Op) error {
	switch o := op.Object.(type) {
	case LinkObject:
		return a.link(op.Verb, o)
	case SysctlObject:
		if err := a.here(); err != nil {
			return err
		}
		return a.sysctl.write(o.Path, o.Value)
	case Addr:
		return a.address(op.Verb, o)
	case NeighObject:
		return a.neigh(op.Verb, o)
	case FDBObject:
		return a.fdb(op.Verb, o)
	case RouteObject:
		return a.route(op.Verb, o)
	}
	return fmt.Errorf("unknown object %T", op.Object)
}

// here is that of sysctls, asked once an Apply.
func (a *applier) here() error {
	if a.isHere {
		return nil
	}
	err := a.sysctl.here()
	a.isHere = err == nil
	return err
}

// dev gives the index of a link, asked once an Apply.
func (a *applier) dev(name string) (int, error) {
	if i, ok := a.index[name]; ok {
		return i, nil
	}
	d, err := a.conn.deviceByName(name)
	if err != nil {
		return 0, fmt.Errorf("link %s: %w", name, err)
	}
	a.index[name] = d.index
	return d.index, nil
}

func (a *applier) link(v Verb, o LinkObject) error {
	delete(a.index, o.Name)
	switch v {
	case Delete:
		return a.conn.deleteLink(o.Name, a.known)
	case Add:
		err := a.newLink(o)
		if err != nil {
			a.failed[o.Name] = true
		}
		return err
	}
	return a.changeLink(o)
}

func (a *applier) newLink(o LinkObject) error {
	device := 0
	if o.VXLAN.Device != "" {
		var err error
		if device, err = a.dev(o.VXLAN.Device); err != nil {
			return fmt.Errorf("underlay %w", err)
		}
	}
	err := a.conn.request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, newVXLAN(o.Name, o.Link, device))
	switch {
	case errors.Is(err, unix.EEXIST):
		return a.exists(o, err)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: this kernel makes no links of kind %s (CONFIG_%s): %w",
			ErrNoFeature, o.Kind, strings.ToUpper(string(o.Kind)), err)
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("UDP port %d is in use by another program: %w", o.VXLAN.Port, err)
	case err != nil:
		return err
	case o.SoftChecksum:
		return a.checksum(o)
	case o.Shape != (Shape{}):
		d, err := a.conn.deviceByName(o.Name)
		if err != nil {
			return err
		}
		return a.shape(d.index, o)
	}
	return nil
}

// exists explains EEXIST: the very link (an Apply that is repeated), the name, or
// another link with the same VNI and port.
func (a *applier) exists(o LinkObject, err error) error {
	d, lookup := a.conn.deviceByName(o.Name)
	if lookup != nil {
		return fmt.Errorf("another VXLAN link%s has VNI %d on UDP port %d: %w", a.sameVNI(o.VXLAN), o.VXLAN.ID, o.VXLAN.Port, err)
	}
	if d.ours() && d.Kind != o.Kind {
		return fmt.Errorf("%w: link %s is a %s", ErrNameInUse, o.Name, d.Kind)
	}
	return a.changeLink(o)
}

// sameVNI names the link that has the VNI and port, after a space; "" where it cannot be told.
func (a *applier) sameVNI(v VXLANSpec) string {
	all, _ := a.conn.devices()
	for _, d := range all {
		if d.Kind == VXLAN && d.VXLAN.ID == v.ID && d.VXLAN.Port == v.Port {
			return " " + d.name
		}
	}
	return ""
}

// changeLink sends what differs only: an address set again flushes the
// neighbours even where it is the same.
func (a *applier) changeLink(o LinkObject) error {
	d, err := a.conn.deviceByName(o.Name)
	if err != nil || !d.ours() {
		a.failed[o.Name] = true
	}
	switch {
	case o.Kind == Veth && errors.Is(err, unix.ENODEV):
		return nil
	case err != nil:
		return err
	case !d.ours():
		return fmt.Errorf("%w: link %s of kind %q was not made by podlane: rename or delete it", ErrNameInUse, o.Name, d.Kind)
	}
	shape, to := o.Have.Shape, o.Have.IngressTo // netlink's link does not tell them
	o.Have = d.Link
	o.Have.Shape, o.Have.IngressTo = shape, to
	mtu, mac := 0, MAC{}
	if o.MTU != o.Have.MTU {
		mtu = o.MTU
	}
	if o.changesMAC() {
		mac = o.MAC
	}
	if mtu != 0 || mac != (MAC{}) || d.Down {
		if err := a.conn.request(unix.RTM_NEWLINK, 0, setLink(d.index, mtu, mac, true)); err != nil {
			return err
		}
	}
	a.index[o.Name] = d.index
	return errors.Join(a.checksum(o), a.shape(d.index, o))
}

func (a *applier) checksum(o LinkObject) error {
	if o.Kind != VXLAN || a.sysctl.here() != nil && !o.SoftChecksum {
		return nil
	}
	if err := a.sysctl.here(); err != nil {
		return err
	}
	return setSoftChecksum(o.Name, o.SoftChecksum)
}

// deleteLink removes a link of ours, which k, where there is one, is to know before; one that
// is gone is no error.
func (c *conn) deleteLink(name string, k *known) error {
	d, err := c.deviceByName(name)
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	if !d.ours() {
		return fmt.Errorf("%w: link %s was not made by podlane", ErrNameInUse, name)
	}
	if k != nil {
		k.delete(d.index)
	}
	err = c.request(unix.RTM_DELLINK, 0, linkHeader(d.index, false).b)
	if err != nil && k != nil {
		k.undelete(d.index)
	}
	return absent(err, unix.ENODEV)
}

// absent turns the errors that say "it is not there" into success of a deletion.
func absent(err error, codes ...unix.Errno) error {
	for _, code := range codes {
		if errors.Is(err, code) {
			return nil
		}
	}
	return err
}

func (a *applier) address(v Verb, o Addr) error {
	i, err := a.dev(o.Dev)
	if v == Delete {
		if err == nil {
			a.known.unput(i, o.Prefix.Addr())
			err = a.conn.request(unix.RTM_DELADDR, 0, address(i, o.Prefix))
		}
		return absent(err, unix.ENODEV, unix.EADDRNOTAVAIL)
	}
	if err != nil {
		return err
	}
	a.known.put(i, o.Prefix.Addr())
	return a.conn.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, address(i, o.Prefix))
}

func (a *applier) neigh(v Verb, o NeighObject) error {
	i, err := a.dev(o.Dev)
	if v == Delete {
		if err == nil {
			err = a.conn.request(unix.RTM_DELNEIGH, 0, neighbour(i, o.Addr, MAC{}))
		}
		return absent(err, unix.ENODEV, unix.ENOENT)
	}
	if err != nil {
		return err
	}
	return a.conn.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, neighbour(i, o.Addr, o.MAC))
}

// fdb replaces, never appends: an entry appended to an existing unicast address
// is accepted and changes nothing.
func (a *applier) fdb(v Verb, o FDBObject) error {
	i, err := a.dev(o.Dev)
	if v == Delete {
		if err == nil {
			err = a.conn.request(unix.RTM_DELNEIGH, 0, fdbEntry(i, o.MAC, o.Dst))
		}
		return absent(err, unix.ENODEV, unix.ENOENT)
	}
	if err != nil {
		return err
	}
	return a.conn.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, fdbEntry(i, o.MAC, o.Dst))
}

func (a *applier) route(v Verb, o RouteObject) error {
	if v == Delete {
		return absent(a.conn.request(unix.RTM_DELROUTE, 0, noRoute(o.Dst)), unix.ESRCH, unix.ENOENT)
	}
	i := 0
	if o.Dev != "" {
		var err error
		if i, err = a.dev(o.Dev); err != nil {
			return err
		}
	}
	return a.setRoute(v, o, i)
}

// setRoute adds a route, or replaces ours. A plain NLM_F_REPLACE would take the
// place of a foreign route too, so it is for routes known to be ours.
func (a *applier) setRoute(v Verb, o RouteObject, index int) error {
	body := route(o.Dst, o.Route, index)
	if v == Add {
		err := a.conn.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, body)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		if err := a.ownRoutes(); err != nil {
			return err
		}
		if !a.own[o.Dst] {
			return fmt.Errorf("%w: see `ip %sroute show %s`", ErrRouteInUse, flag6(o.Dst.Addr()), o.Dst)
		}
	}
	return a.conn.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

// ownRoutes finds our routes, at most once an Apply.
func (a *applier) ownRoutes() error {
	if a.own != nil {
		return nil
	}
	a.own = map[netip.Prefix]bool{}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := a.conn.routes(family, Protocol)
		if err != nil {
			return err
		}
		for _, r := range found {
			a.own[r.dst] = true
		}
	}
	return nil
}
