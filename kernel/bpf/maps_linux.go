package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/podlane/podlane/overlay/fastpath"
)

// readMaps reads what the maps have: what an agent before left in them.
func (h *Handle) readMaps() error {
	var addr objectsAddr
	var pod objectsPod
	pods := h.objects.PlPods.Iterate()
	for pods.Next(&addr, &pod) {
		h.pods[fromAddr(addr)] = pod
	}
	var key objectsPeerKey
	var peer objectsPeer
	peers := h.objects.PlPeers.Iterate()
	for peers.Next(&key, &peer) {
		h.peers[fromKey(key)] = peer
	}
	return errors.Join(pods.Err(), peers.Err())
}

// entries are those of the State that Apply was given. A flow takes the fast path
// both ways or not at all: a pod is in it, and a peer, once its device has its program,
// and no longer when the program goes. One write to a map turns both directions.
func (h *Handle) entries() (map[netip.Addr]objectsPod, map[netip.Prefix]objectsPeer) {
	pods, peers := map[netip.Addr]objectsPod{}, map[netip.Prefix]objectsPeer{}
	for a, p := range h.want.Pods {
		i, exists := h.index[p.Dev]
		if !exists {
			continue
		}
		pod := objectsPod{Ifindex: uint32(i), Mtu: uint32(p.MTU), Mac: p.MAC}
		if p.Normal != "" || !h.stays(p.Dev) {
			pod.Normal = 1
		}
		pods[a] = pod
	}
	for cidr, p := range h.want.Peers {
		if !h.stays(p.Dev) || slices.ContainsFunc(p.From, func(dev string) bool { return !h.stays(dev) }) {
			continue
		}
		peer := objectsPeer{Ifindex: uint32(h.index[p.Dev]), Mtu: uint32(p.MTU), Dst: p.Dst, Src: p.Src, Outer: h.outer(p.Outer)}
		if len(p.From) > 1 {
			peer.Either = 1
		}
		switch {
		case p.Via.Is4():
			peer.Family, peer.Via = unix.AF_INET, toAddr(p.Via)
		case p.Via.Is6():
			peer.Family, peer.Via = unix.AF_INET6, toAddr(p.Via)
		}
		peers[cidr] = peer
	}
	return pods, peers
}

// outer gives the numbers as they are in a packet.
func (h *Handle) outer(o fastpath.Outer) (raw objectsOuter) {
	i, exists := h.index[o.Dev]
	if !exists {
		return raw
	}
	src, dst := o.Src.As4(), o.Dst.As4()
	raw.Ifindex = uint32(i)
	raw.Src, raw.Dst = binary.NativeEndian.Uint32(src[:]), binary.NativeEndian.Uint32(dst[:])
	raw.Vni = binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, o.VNI<<8))
	raw.Port = binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, o.Port))
	return raw
}

// update brings the maps to entries. What is not wanted goes first: a packet must
// find no way that is no longer there, while for one that is not there yet there is
// the normal path. Flows are forgotten before that: an agent that is killed in between
// leaves none that the normal path would find invalid.
func (h *Handle) update() error {
	pods, peers := h.entries()
	err := forgetFlows(h.gone(pods, peers))
	return errors.Join(err,
		forget(h.objects.PlPods, h.pods, pods, toAddr), forget(h.objects.PlPeers, h.peers, peers, toKey),
		remember(h.objects.PlPods, h.pods, pods, toAddr), remember(h.objects.PlPeers, h.peers, peers, toKey))
}

func forget[K comparable, V comparable, R any](m *ebpf.Map, have, want map[K]V, raw func(K) R) error {
	var errs []error
	for k := range maps.Clone(have) {
		if _, wanted := want[k]; wanted {
			continue
		}
		if err := m.Delete(raw(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("%v: %w", k, err))
			continue
		}
		delete(have, k)
	}
	return errors.Join(errs...)
}

func remember[K comparable, V comparable, R any](m *ebpf.Map, have, want map[K]V, raw func(K) R) error {
	var errs []error
	for k, v := range want {
		if old, had := have[k]; had && old == v {
			continue
		}
		if err := m.Put(raw(k), v); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", k, err))
			continue
		}
		have[k] = v
	}
	return errors.Join(errs...)
}

// toAddr gives the bytes of an address as they are in a packet, IPv4 as
// ::ffff:a.b.c.d.
func toAddr(a netip.Addr) (out objectsAddr) {
	raw := a.As16()
	for i := range out.Word {
		out.Word[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return out
}

func fromAddr(a objectsAddr) netip.Addr {
	var raw [16]byte
	for i, w := range a.Word {
		binary.NativeEndian.PutUint32(raw[4*i:], w)
	}
	return netip.AddrFrom16(raw).Unmap()
}

func toKey(p netip.Prefix) objectsPeerKey {
	return objectsPeerKey{Bits: uint32(p.Bits() + 128 - p.Addr().BitLen()), Addr: toAddr(p.Addr())}
}

func fromKey(k objectsPeerKey) netip.Prefix {
	a := fromAddr(k.Addr)
	return netip.PrefixFrom(a, int(k.Bits)-128+a.BitLen())
}
