package explain

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/podlane/podlane/overlay"
	"github.com/podlane/podlane/plan"
)

// localSource is the address with which a process of the node sends: the route's
// preferred source, or an address of the link that the route leads to.
func (t *traveller) localSource(own *plan.Plan, dst netip.Addr) netip.Addr {
	if t.isOwn(own, dst) {
		return dst
	}
	_, r, ok := lookup(own.Link, dst)
	switch {
	case ok && r.Src.IsValid():
		return r.Src
	case ok && !r.Unreachable:
		return addressOn(own, r.Dev, r.Via, dst.Is6())
	}
	return addressOn(own, own.Underlay.Device, dst, dst.Is6())
}

// addressOn is the address that the kernel takes for what leaves over a link,
// be it as a source or for masquerading: that in the next hop's prefix, or else
// the link's first of the family.
func addressOn(own *plan.Plan, dev string, next netip.Addr, v6 bool) netip.Addr {
	var addrs []netip.Prefix
	if dev == own.Underlay.Device || dev == "lo" {
		addrs = own.Underlay.Addrs
	} else {
		for k := range own.Link.Addrs {
			if k.Dev == dev {
				addrs = append(addrs, k.Prefix)
			}
		}
		slices.SortFunc(addrs, netip.Prefix.Compare)
	}
	var first netip.Addr
	for _, a := range addrs {
		if a.Addr().Is6() != v6 {
			continue
		}
		if a.Contains(next) {
			return a.Addr()
		}
		if !first.IsValid() {
			first = a.Addr()
		}
	}
	return first
}

// masquerade changes the source of a packet that is marked for it, as it leaves
// over a link.
func (t *traveller) masquerade(p *packet, own *plan.Plan, dev string, next netip.Addr) {
	if p.masq == "" {
		return
	}
	v6 := p.dst.Addr().Is6()
	was := p.src
	p.src = addressOn(own, dev, next, v6)
	if dev == "lo" && v6 {
		p.src = p.dst.Addr() // rule 1 of RFC 6724, section 5
	}
	becomes := fmt.Sprintf("the source %s becomes %s", was, p.src)
	if was == p.src {
		becomes = fmt.Sprintf("the source is set to %s, which it was", p.src)
	}
	hairpin := was == p.dst.Addr()
	p.why = p.masq
	p.nat = slices.Clone(p.nat)
	p.nat[len(p.nat)-1].newSrc = p.src
	p.hop(StageSource, p.at, fmt.Sprintf("%s, that of %s: %s", becomes, deviceName(dev), p.masq), masqueradeObject(p.at, v6, hairpin))
	p.masq = ""
}

func deviceName(dev string) string {
	if dev == overlay.Device {
		return dev + " (the node's VTEP)"
	}
	return dev
}
