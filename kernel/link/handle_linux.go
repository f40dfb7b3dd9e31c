package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Handle reads and writes one network namespace: that of the thread which opened
// it. Links, addresses, routes, neighbours and FDB entries go through a socket
// bound to that namespace, from whatever thread; sysctls go through /proc/sys,
// which shows the namespace of the thread that looks, so Apply and Read refuse
// to touch them from a thread in another one.
//
// It is not safe for use by several goroutines.
type Handle struct {
	conn   *conn
	sysctl sysctls
	known  *known
}

// Open gives a Handle on the calling thread's network namespace. procSys is
// where /proc/sys is mounted, "" for "/proc/sys".
func Open(procSys string) (*Handle, error) {
	c, err := openConn()
	if err != nil {
		return nil, err
	}
	s, err := newSysctls(procSys)
	if err != nil {
		_ = unix.Close(c.fd)
		return nil, err
	}
	return &Handle{conn: c, sysctl: s, known: newKnown()}, nil
}

// Close ends the Handle's use. What it made in the kernel stays.
func (h *Handle) Close() error { return unix.Close(h.conn.fd) }

// device is a link as the kernel tells of it.
type device struct {
	index int
	name  string
	group uint32
	flags uint32
	// underlay is the index of a VXLAN link's underlay link.
	underlay int
	Link
}

// ours tells whether we made the link.
func (d device) ours() bool { return d.group == Group && strings.HasPrefix(d.name, Prefix) }

func parseLink(b []byte) (device, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return device{}, errors.New("link message too short")
	}
	d := device{
		index: int(int32(binary.NativeEndian.Uint32(b[4:]))),
		flags: binary.NativeEndian.Uint32(b[8:]),
	}
	d.Down = d.flags&unix.IFF_UP == 0
	for a := range attributes(b[unix.SizeofIfInfomsg:]) {
		switch a.typ {
		case unix.IFLA_IFNAME:
			d.name = a.text()
		case unix.IFLA_MTU:
			d.MTU = int(a.u32())
		case unix.IFLA_ADDRESS:
			d.MAC, _ = a.mac()
		case unix.IFLA_GROUP:
			d.group = a.u32()
		case unix.IFLA_LINKINFO:
			d.parseInfo(a.data)
		}
	}
	return d, nil
}

func (d *device) parseInfo(b []byte) {
	for a := range attributes(b) {
		switch a.typ {
		case unix.IFLA_INFO_KIND:
			d.Kind = Kind(a.text())
		case unix.IFLA_INFO_DATA:
			if d.Kind == VXLAN { // the kind comes first
				d.parseVXLAN(a.data)
			}
		}
	}
}

func (d *device) parseVXLAN(b []byte) {
	for a := range attributes(b) {
		switch a.typ {
		case unix.IFLA_VXLAN_ID:
			d.VXLAN.ID = a.u32()
		case unix.IFLA_VXLAN_PORT:
			d.VXLAN.Port = a.u16be()
		case unix.IFLA_VXLAN_LOCAL, unix.IFLA_VXLAN_LOCAL6:
			d.VXLAN.Local = a.addr()
		case unix.IFLA_VXLAN_LINK:
			d.underlay = int(a.u32())
		case unix.IFLA_VXLAN_LEARNING:
			d.VXLAN.Learning = a.u8() != 0
		}
	}
}

// deviceByName gives the link of a name; unix.ENODEV if there is none.
func (c *conn) deviceByName(name string) (device, error) {
	msg, err := c.get(unix.RTM_GETLINK, linkByName(name))
	if err != nil {
		return device{}, err
	}
	return parseLink(msg)
}

// devices gives all links, by index.
func (c *conn) devices() (map[int]device, error) {
	m := linkHeader(0, false)
	m.u32(unix.IFLA_EXT_MASK, skipStats)
	msgs, err := c.dump(unix.RTM_GETLINK, m.b)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	all := make(map[int]device, len(msgs))
	for _, msg := range msgs {
		d, err := parseLink(msg)
		if err != nil {
			return nil, fmt.Errorf("list links: %w", err)
		}
		all[d.index] = d
	}
	for i, d := range all {
		if d.underlay != 0 {
			d.VXLAN.Device = all[d.underlay].name
			all[i] = d
		}
	}
	return all, nil
}
