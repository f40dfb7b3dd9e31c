package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"

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

// wantMaps gives a State's entries. What is on a device that does not exist is
// left out.
func wantMaps(s fastpath.State, index map[string]int) (map[netip.Addr]objectsPod, map[netip.Prefix]objectsPeer) {
	pods, peers := map[netip.Addr]objectsPod{}, map[netip.Prefix]objectsPeer{}
	for a, p := range s.Pods {
		if i, exists := index[p.Dev]; exists {
			pods[a] = objectsPod{Ifindex: uint32(i), Mtu: uint32(p.MTU), Mac: p.MAC}
			if p.Normal != "" {
				pods[a] = objectsPod{Ifindex: uint32(i), Mtu: uint32(p.MTU), Mac: p.MAC, Normal: 1}
			}
		}
	}
	for cidr, p := range s.Peers {
		i, exists := index[p.Dev]
		if !exists {
			continue
		}
		peer := objectsPeer{Ifindex: uint32(i), Mtu: uint32(p.MTU), Dst: p.Dst, Src: p.Src}
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

// forget takes entries away that are not wanted, remember puts the others: a
// packet must find no way that is no longer there, while for one that is not
// there yet there is the normal path.
func (h *Handle) forget(pods map[netip.Addr]objectsPod, peers map[netip.Prefix]objectsPeer) error {
	return errors.Join(
		forget(h.objects.PlPods, h.pods, pods, toAddr),
		forget(h.objects.PlPeers, h.peers, peers, toKey))
}

func (h *Handle) remember(pods map[netip.Addr]objectsPod, peers map[netip.Prefix]objectsPeer) error {
	return errors.Join(
		remember(h.objects.PlPods, h.pods, pods, toAddr),
		remember(h.objects.PlPeers, h.peers, peers, toKey))
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
