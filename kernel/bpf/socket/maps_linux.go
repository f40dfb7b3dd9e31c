package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	proxy "github.com/podlane/podlane/proxy/ebpf"
)

// Read gives what the maps have: what an agent before left in them. Counters of
// frontends that are not there go.
func (h *Handle) Read() (map[proxy.Frontend]*proxy.Service, error) {
	have := map[proxy.Frontend]*proxy.Service{}
	counts := map[proxy.Frontend]int{}
	var at, to objectsPlace
	var s objectsService
	services := h.objects.PlServices.Iterate()
	for services.Next(&at, &s) {
		have[fromPlace(at)] = &proxy.Service{Count: s.Counted != 0}
		counts[fromPlace(at)] = int(s.Count)
	}
	slots := h.objects.PlSlots.Iterate()
	for slots.Next(&at, &to) {
		one := have[fromPlace(at)]
		if one == nil {
			one = &proxy.Service{Torn: true}
			have[fromPlace(at)] = one
		}
		if missing := int(at.Slot) - len(one.Backends); missing > 0 {
			one.Backends = append(one.Backends, make([]netip.AddrPort, missing)...)
		}
		one.Backends[at.Slot-1] = fromPlace(to)
	}
	for at, one := range have {
		one.Torn = one.Torn || len(one.Backends) != counts[at] || slices.Contains(one.Backends, netip.AddrPort{})
	}
	return have, errors.Join(services.Err(), slots.Err(), h.forgetFlows(have))
}

// forgetFlows deletes the counters that a killed writer left.
func (h *Handle) forgetFlows(have map[proxy.Frontend]*proxy.Service) error {
	var at objectsPlace
	var pair objectsPair
	var each []uint64
	var errs []error
	flows := h.objects.PlFlows.Iterate()
	for flows.Next(&at, &each) {
		if have[fromPlace(at)] == nil {
			errs = append(errs, remove(h.objects.PlFlows, at))
		}
	}
	pairs := h.objects.PlPairFlows.Iterate()
	for pairs.Next(&pair, &each) {
		of := have[fromPlace(pair.Frontend)]
		if of == nil || !of.Count || !slices.Contains(of.Backends, fromPlace(pair.Endpoint)) {
			errs = append(errs, remove(h.objects.PlPairFlows, pair))
		}
	}
	return errors.Join(append(errs, flows.Err(), pairs.Err())...)
}

// Write makes changes, those first that make room. At each moment a frontend leads to
// endpoints that it had or will have, or to the rules. It goes on after an error, and leaves that
// frontend to the rules: it may still lead to endpoints that are gone. What the maps then have is to be
// read.
func (h *Handle) Write(changes []proxy.Change) error {
	var errs []error
	for _, ends := range []bool{true, false} {
		for _, c := range changes {
			if (c.New == nil) != ends {
				continue
			}
			if err := h.write(c); err != nil {
				errs = append(errs, fmt.Errorf("frontend %s: %w", c.Frontend, errors.Join(err, remove(h.objects.PlServices, toPlace(c.Frontend)))))
			}
		}
	}
	return errors.Join(errs...)
}

func (h *Handle) write(c proxy.Change) error {
	at := toPlace(c.Frontend)
	old, now := or(c.Old), or(c.New)
	for i, b := range now.Backends {
		if i < len(old.Backends) && old.Backends[i] == b && !old.Torn {
			continue
		}
		if err := h.objects.PlSlots.Put(slot(at, i), toPlace(b)); err != nil {
			return err
		}
	}
	if c.New != nil {
		if err := h.writeService(at, old, now); err != nil {
			return err
		}
	} else if err := remove(h.objects.PlServices, at); err != nil {
		return err
	}
	var errs []error
	for i := len(now.Backends); i < len(old.Backends); i++ {
		errs = append(errs, remove(h.objects.PlSlots, slot(at, i)))
	}
	if old.Count {
		for _, b := range old.Backends {
			if !now.Count || !slices.Contains(now.Backends, b) {
				errs = append(errs, remove(h.objects.PlPairFlows, objectsPair{Frontend: at, Endpoint: toPlace(b)}))
			}
		}
	}
	if c.New == nil {
		errs = append(errs, remove(h.objects.PlFlows, at))
	}
	return errors.Join(errs...)
}

// writeService has the counters there before the first connection is counted.
func (h *Handle) writeService(at objectsPlace, old, now proxy.Service) error {
	if err := create(h.objects.PlFlows, at); err != nil {
		return err
	}
	s := objectsService{Count: uint32(len(now.Backends))}
	if now.Count {
		s.Counted = 1
		for _, b := range now.Backends {
			if err := create(h.objects.PlPairFlows, objectsPair{Frontend: at, Endpoint: toPlace(b)}); err != nil {
				return err
			}
		}
	}
	if !old.Torn && s.Count == uint32(len(old.Backends)) && now.Count == old.Count && s.Count != 0 {
		return nil
	}
	return h.objects.PlServices.Put(at, s)
}

func or(s *proxy.Service) proxy.Service {
	if s == nil {
		return proxy.Service{}
	}
	return *s
}

// create makes a counter that is not there.
func create(m *ebpf.Map, key any) error {
	zero := make([]uint64, ebpf.MustPossibleCPU())
	if err := m.Update(key, zero, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return err
	}
	return nil
}

func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// SetClients says which network namespaces, by their cookies, take part.
func (h *Handle) SetClients(want map[uint64]bool) error {
	var cookie uint64
	var value uint8
	have := map[uint64]bool{}
	all := h.objects.PlClients.Iterate()
	for all.Next(&cookie, &value) {
		have[cookie] = true
	}
	errs := []error{all.Err()}
	for c := range have {
		if !want[c] {
			errs = append(errs, remove(h.objects.PlClients, c))
		}
	}
	for c := range want {
		if !have[c] {
			errs = append(errs, h.objects.PlClients.Put(c, uint8(1)))
		}
	}
	return errors.Join(errs...)
}

func slot(at objectsPlace, i int) objectsPlace {
	at.Slot = uint16(i + 1)
	return at
}

// toPlace gives an address and port as the programs see them in a socket's.
func toPlace(a netip.AddrPort) (p objectsPlace) {
	raw := a.Addr().As16()
	for i := range p.Addr {
		p.Addr[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	p.Port = network16(a.Port())
	return p
}

func fromPlace(p objectsPlace) netip.AddrPort {
	var raw [16]byte
	for i, w := range p.Addr {
		binary.NativeEndian.PutUint32(raw[4*i:], w)
	}
	return netip.AddrPortFrom(netip.AddrFrom16(raw).Unmap(), network16(p.Port))
}

// network16 turns a port between the machine's and the network's order of bytes.
func network16(p uint16) uint16 {
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		return bits.ReverseBytes16(p)
	}
	return p
}
