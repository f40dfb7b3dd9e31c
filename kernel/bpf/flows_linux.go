package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/kernel/conntrack"
)

// ways are the addresses of local pods, and the networks of peers' pods, whose
// packets take the fast path.
type ways struct {
	pods  map[netip.Addr]uint32 // index of the device
	peers map[netip.Prefix]bool
}

// waysOf gives those of maps with this content.
func waysOf(pods map[netip.Addr]objectsPod, peers map[netip.Prefix]objectsPeer) ways {
	w := ways{map[netip.Addr]uint32{}, map[netip.Prefix]bool{}}
	for a, p := range pods {
		if p.Normal == 0 {
			w.pods[a] = p.Ifindex
		}
	}
	for cidr := range peers {
		w.peers[cidr] = true
	}
	return w
}

// takeOver notes which pods take the fast path already, by this layout's maps or, where these do not
// have a pod, by those of another, as far as they can be read.
func (h *Handle) takeOver() error {
	h.took = waysOf(h.pods, h.peers).pods
	dirs, err := others(h.dir)
	for _, dir := range dirs {
		for a, index := range pinnedWays(dir).pods {
			if _, has := h.pods[a]; !has {
				h.took[a] = index
			}
		}
	}
	return err
}

// gone gives what the maps have now and will not have with this content. Pods that
// have ended are left out: their flows have too.
func (h *Handle) gone(pods map[netip.Addr]objectsPod, peers map[netip.Prefix]objectsPeer) ways {
	before, now := waysOf(h.pods, h.peers), waysOf(pods, peers)
	left := ways{map[netip.Addr]uint32{}, map[netip.Prefix]bool{}}
	there := slices.Collect(maps.Values(h.index))
	for a, index := range before.pods {
		if now.pods[a] == 0 && slices.Contains(there, int(index)) {
			left.pods[a] = index
		}
	}
	for cidr := range before.peers {
		if !now.peers[cidr] {
			left.peers[cidr] = true
		}
	}
	return left
}

func (w ways) has(a netip.Addr) bool {
	if w.pods[a] != 0 {
		return true
	}
	for cidr := range w.peers {
		if cidr.Contains(a) {
			return true
		}
	}
	return false
}

// forgetFlows deletes what conntrack remembers of TCP connections that are to leave
// the fast path. Of one from before it had come there, conntrack knows old sequence numbers:
// it would find all its packets invalid, which is the end of it where a firewall
// drops those (kube-proxy's in iptables mode does). Of one it has forgotten it takes up what
// it sees, as of every connection that is older than its own table, and judges it mildly.
func forgetFlows(left ways) error {
	if len(left.pods)+len(left.peers) == 0 {
		return nil
	}
	conn, err := conntrack.Dial(0)
	if err != nil {
		return fmt.Errorf("flows that have left the fast path: %w", err)
	}
	defer conn.Close()
	var stale []conntrack.Flow
	var errs []error
	for _, v6 := range []bool{false, true} {
		err := conntrack.ErrPartial
		for try := 0; try < listTries && errors.Is(err, conntrack.ErrPartial); try++ {
			err = conn.Each(unix.IPPROTO_TCP, v6, func(f conntrack.Flow) {
				translated := f.Orig.Src != f.Reply.Dst || f.Orig.Dst != f.Reply.Src
				if !translated && (left.has(f.Orig.Src.Addr()) || left.has(f.Orig.Dst.Addr())) {
					stale = append(stale, f)
				}
			})
		}
		if !errors.Is(err, unix.EOPNOTSUPP) { // no IPv6
			errs = append(errs, err)
		}
	}
	for _, f := range stale {
		if err := conn.Delete(f); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// askConntrack has the kernel load what it needs to answer.
func askConntrack() {
	if conn, err := conntrack.Dial(0); err == nil {
		_ = conn.Each(unix.IPPROTO_RAW, false, func(conntrack.Flow) {})
		_ = conn.Close()
	}
}
