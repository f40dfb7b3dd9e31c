// Package ebpf renders a proxy.Table into what the programs of kernel/bpf/socket
// look up at connect(): the endpoints of TCP cluster IPs, in slots. It is pure, and
// leaves to nftables all that cannot be decided at the socket.
package ebpf

import (
	"net/netip"
	"slices"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/proxy"
)

// Frontend is the address and port that pods connect to, by TCP.
type Frontend = netip.AddrPort

// Service is what a frontend leads to.
type Service struct {
	// Backends are its endpoints, in the order of the slots. With none the nftables
	// rules decide: to refuse, to drop, or by affinity.
	Backends []netip.AddrPort
	Count    bool // connections to each endpoint
	// Torn says that the maps have no whole Service: their writer was killed.
	Torn bool
}

func (s *Service) equal(o *Service) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.Count == o.Count && s.Torn == o.Torn && slices.Equal(s.Backends, o.Backends)
}

// Change brings a frontend from what the maps have to what they should have; nil
// is nothing.
type Change struct {
	Frontend Frontend
	Old, New *Service
}

// Applied is what the maps have. It is never changed.
type Applied struct {
	table  cluster.Map[proxy.Entry]
	fronts cluster.Map[front]
	own    []netip.Addr
	fresh  bool // all fronts are to be looked at
}

// front is a frontend with the Services that claim it, sorted: the first has it.
type front struct {
	at      Frontend
	claims  []cluster.Key
	service *Service
}

// Adopt takes what was read from the maps: the next Diff looks at all of it.
func Adopt(have map[Frontend]*Service) *Applied {
	fronts := make(map[cluster.Key]*front, len(have))
	for at, s := range have {
		fronts[keyOf(at)] = &front{at: at, service: s}
	}
	a := &Applied{fresh: true}
	a.fronts = a.fronts.With(fronts)
	return a
}

// Len is how many frontends there are.
func (a *Applied) Len() int { return a.fronts.Len() }

// Each gives the frontends that have endpoints.
func (a *Applied) Each(f func(Frontend, *Service)) {
	for _, one := range a.fronts.All() {
		if one.service != nil && len(one.service.Backends) > 0 {
			f(one.at, one.service)
		}
	}
}

func keyOf(at Frontend) cluster.Key { return cluster.Key{Name: at.String()} }

// Diff gives the changes that bring the maps to a Table. A frontend with one of the
// node's own addresses is left to the rules, which may lead to a process of the node
// (a DNS cache that has the cluster IP of the cluster's DNS). It costs what changed
// since the Table of a, in the order of their addresses.
func Diff(a *Applied, t *proxy.Table, own []netip.Addr) (*Applied, []Change) {
	d := differ{a: a, set: map[cluster.Key]*front{}}
	for c := range t.Services.Changed(a.table) {
		d.claim(c)
	}
	if a.fresh || !slices.Equal(own, a.own) {
		for k, f := range a.fronts.All() {
			d.front(k, f.at)
		}
	}
	var changes []Change
	for k, f := range d.set {
		was := f.service
		f.service = arrange(was, want(t, f, own))
		if !was.equal(f.service) {
			changes = append(changes, Change{f.at, was, f.service})
		}
		if len(f.claims) == 0 {
			d.set[k] = nil
		}
	}
	slices.SortFunc(changes, func(x, y Change) int { return x.Frontend.Compare(y.Frontend) })
	next := &Applied{table: t.Services, own: slices.Clone(own), fronts: a.fronts.With(d.set)}
	return next, changes
}

type differ struct {
	a   *Applied
	set map[cluster.Key]*front // that may change
}

func (d *differ) claim(c cluster.Change[proxy.Entry]) {
	eachFront(c.Old, func(at Frontend, _ *proxy.Port) {
		f := d.front(keyOf(at), at)
		f.claims = slices.DeleteFunc(f.claims, func(k cluster.Key) bool { return k == c.Key })
	})
	eachFront(c.New, func(at Frontend, _ *proxy.Port) {
		f := d.front(keyOf(at), at)
		if i, found := slices.BinarySearchFunc(f.claims, c.Key, cluster.Key.Compare); !found {
			f.claims = slices.Insert(f.claims, i, c.Key)
		}
	})
}

func (d *differ) front(k cluster.Key, at Frontend) *front {
	if f := d.set[k]; f != nil {
		return f
	}
	f := &front{at: at}
	if old := d.a.fronts.Get(k); old != nil {
		f.service, f.claims = old.service, slices.Clone(old.claims)
	}
	d.set[k] = f
	return f
}

// eachFront gives all TCP frontends of an entry but NodePorts, whatever their kind:
// the first Service that claims an address has it, even where it is then not
// translated here.
func eachFront(e *proxy.Entry, f func(Frontend, *proxy.Port)) {
	if e == nil {
		return
	}
	for i := range e.Ports {
		p := &e.Ports[i]
		if p.Protocol != cluster.TCP {
			continue
		}
		for _, front := range p.Frontends {
			if front.Kind != proxy.NodePort {
				f(front.Addr, p)
			}
		}
	}
}

// want gives what a frontend should lead to: what its first Service, and of that
// the first port, has for it.
func want(t *proxy.Table, f *front, own []netip.Addr) *Service {
	if len(f.claims) == 0 {
		return nil
	}
	var port *proxy.Port
	eachFront(t.Services.Get(f.claims[0]), func(at Frontend, p *proxy.Port) {
		if at == f.at && port == nil {
			port = p
		}
	})
	i := slices.IndexFunc(port.Frontends, func(of proxy.Frontend) bool { return of.Addr == f.at })
	front := port.Frontends[i]
	s := &Service{Count: port.Count}
	if Translated(port, front) && !slices.Contains(own, f.at.Addr()) {
		s.Backends = port.Way(front).Backends[:min(len(port.Way(front).Backends), maxSlots)]
	}
	return s
}

// maxSlots is what a slot's number can say. What a Service has more gets no
// connections from here.
const maxSlots = 1<<16 - 1

// Translated says that connections of pods to a frontend are translated at the
// socket where it has endpoints. Affinity is by the client's address, which a socket
// does not have yet when it connects; other kinds of frontends have rules for who
// the client is; and where all are masqueraded, the rules replace the client's address.
func Translated(p *proxy.Port, f proxy.Frontend) bool {
	return p.Protocol == cluster.TCP && f.Kind == proxy.ClusterIP && p.Affinity == 0 && !p.MasqueradeAll
}

// arrange puts the wanted backends into slots so that those that stay keep
// theirs: the last ones move into the holes.
func arrange(was, want *Service) *Service {
	if was == nil || want == nil || was.Torn || slices.Equal(was.Backends, want.Backends) {
		return want
	}
	wanted := make(map[netip.AddrPort]bool, len(want.Backends))
	for _, b := range want.Backends {
		wanted[b] = true
	}
	slots := make([]netip.AddrPort, 0, len(want.Backends))
	var holes []int
	for _, b := range was.Backends {
		if !wanted[b] {
			holes = append(holes, len(slots))
		}
		slots = append(slots, b)
		delete(wanted, b)
	}
	for _, b := range want.Backends {
		if !wanted[b] {
			continue
		}
		if len(holes) == 0 {
			slots = append(slots, b)
			continue
		}
		slots[holes[0]], holes = b, holes[1:]
	}
	for _, hole := range slices.Backward(holes) {
		slots[hole] = slots[len(slots)-1]
		slots = slots[:len(slots)-1]
	}
	return &Service{Backends: slots, Count: want.Count}
}
