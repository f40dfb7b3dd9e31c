package link

import (
	"errors"
	"fmt"
	"math"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// queueTime is how long a packet may wait in a shaper's queue, in microseconds.
const queueTime = 25_000

// shaperHandle is our mark on a queueing discipline, since a link of ours may get one of
// someone else's: "pl".
var shaperHandle = netlink.MakeHandle(0x706c, 0)

// tbf is the token bucket of a shape: its limit is what may wait beside the burst, so
// that both can be read back.
func tbf(index int, s Shape) *netlink.Tbf {
	rate := min(s.Rate, math.MaxUint32)
	burst := uint32(min(s.Burst, math.MaxUint32/2))
	return &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: shaperHandle, Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Limit: waiting(rate) + burst, Buffer: netlink.Xmittime(rate, burst),
	}
}

func waiting(rate uint64) uint32 { return uint32(min(rate*queueTime/1_000_000, math.MaxUint32/2)) }

// shapes adds to our links what shapes them, and to which of our links their ingress
// goes. What others have put there is none of ours, and stays.
func (h *Handle) shapes(s State, all map[int]device) error {
	if len(s.Links) == 0 || h.sysctl.here() != nil {
		return nil
	}
	qdiscs, err := netlink.QdiscList(nil)
	if err != nil {
		return fmt.Errorf("list qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		d := all[q.Attrs().LinkIndex]
		l, ours := s.Links[d.name]
		if !ours {
			continue
		}
		switch q := q.(type) {
		case *netlink.Tbf:
			if q.Handle != shaperHandle {
				continue
			}
			l.Shape = Shape{Rate: q.Rate, Burst: uint64(q.Limit - min(q.Limit, waiting(q.Rate)))}
		case *netlink.Ingress:
			to, err := redirected(d.index, all)
			if err != nil {
				return err
			}
			if _, ours := s.Links[to]; ours {
				l.IngressTo = to
			}
		}
		s.Links[d.name] = l
	}
	return nil
}

// redirected gives the link to which all that comes in by a link goes.
func redirected(index int, all map[int]device) (string, error) {
	filters, err := netlink.FilterList(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}, netlink.MakeHandle(0xffff, 0))
	if err != nil {
		return "", fmt.Errorf("list filters: %w", err)
	}
	for _, f := range filters {
		u, ok := f.(*netlink.U32)
		if !ok {
			continue
		}
		for _, a := range u.Actions {
			if m, ok := a.(*netlink.MirredAction); ok {
				return all[m.Ifindex].name, nil
			}
		}
	}
	return "", nil
}

// shape makes a link's shaping what it is to be, and takes it away where it is not to
// be.
func (a *applier) shape(index int, o LinkObject) error {
	if o.Kind != Veth && o.Kind != IFB {
		return nil
	}
	if o.Shape == o.Have.Shape && o.IngressTo == o.Have.IngressTo {
		return nil
	}
	if err := a.sysctl.here(); err != nil {
		return err
	}
	if o.Shape != o.Have.Shape {
		if err := shapeEgress(index, o.Shape); err != nil {
			return fmt.Errorf("shape: %w", err)
		}
	}
	if o.IngressTo == o.Have.IngressTo {
		return nil
	}
	return a.redirect(index, o.IngressTo)
}

func shapeEgress(index int, s Shape) error {
	if s == (Shape{}) {
		err := netlink.QdiscDel(tbf(index, s))
		return absent(err, unix.ENOENT, unix.EINVAL)
	}
	err := netlink.QdiscReplace(tbf(index, s))
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: this kernel has no token bucket filter (CONFIG_NET_SCH_TBF): %w", ErrNoFeature, err)
	}
	return err
}

// redirect makes the ingress of a link go to another one, or nowhere else.
func (a *applier) redirect(index int, to string) error {
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if to == "" {
		return absent(netlink.QdiscDel(ingress), unix.ENOENT, unix.EINVAL)
	}
	if a.failed[to] { // which is an error of its own; the name may be somebody else's link
		return nil
	}
	dev, err := a.dev(to)
	if err != nil {
		return err
	}
	err = netlink.QdiscAdd(ingress)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: this kernel has no ingress queueing discipline (CONFIG_NET_SCH_INGRESS): %w", ErrNoFeature, err)
	case err != nil && !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("ingress: %w", err)
	}
	err = netlink.FilterReplace(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL, Handle: 0x80000800},
		ClassId:     netlink.MakeHandle(1, 1),
		Actions:     []netlink.Action{&netlink.MirredAction{ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: dev}},
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: this kernel cannot redirect ingress (CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED): %w", ErrNoFeature, err)
	case err != nil:
		return fmt.Errorf("ingress to %s: %w", to, err)
	}
	return nil
}
