package socket

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	proxy "github.com/podlane/podlane/proxy/ebpf"
)

// Whatever a killed writer left, the next one sees, and its changes mend it.
func TestRead_torn(t *testing.T) {
	m := newMachine(t)
	r := rand.New(rand.NewPCG(1, 2))
	random := func() map[proxy.Frontend]*proxy.Service {
		all := map[proxy.Frontend]*proxy.Service{}
		for _, at := range []netip.AddrPort{web4, addr("10.96.0.2:80"), addr("10.96.0.3:443")} {
			if r.IntN(4) == 0 {
				continue
			}
			s := &proxy.Service{Count: r.IntN(2) == 0}
			for _, i := range r.Perm(len(ends4))[:r.IntN(len(ends4)+1)] {
				s.Backends = append(s.Backends, ends4[i])
			}
			all[at] = s
		}
		return all
	}
	for round := range 300 {
		have, err := m.Read()
		must(t, err)
		must(t, m.Write(changes(have, random())))
		m.tear(r)
		have, err = m.Read()
		must(t, err)
		want := random()
		must(t, m.Write(changes(have, want)))
		got, err := m.Read()
		must(t, err)
		if len(changes(got, want)) != 0 {
			t.Fatalf("round %d: %v, want %v", round, got, want)
		}
		flows, err := ReadFlows(m.config.Dir)
		must(t, err)
		pairs := 0
		for at, s := range want {
			if s.Count {
				pairs += len(s.Backends)
			}
			if _, counted := flows.Frontends[at]; !counted {
				t.Fatalf("round %d: %s has no counter", round, at)
			}
		}
		if len(flows.Frontends) != len(want) || len(flows.Endpoints) != pairs {
			t.Fatalf("round %d: %v, want %v", round, flows, want)
		}
	}
}

// changes are those from what the maps have to what they should have.
func changes(have, want map[proxy.Frontend]*proxy.Service) []proxy.Change {
	var all []proxy.Change
	for at, s := range have {
		if want[at] == nil {
			all = append(all, proxy.Change{Frontend: at, Old: s})
		}
	}
	for at, s := range want {
		if old := have[at]; old == nil || old.Torn || old.Count != s.Count || !slices.Equal(old.Backends, s.Backends) {
			all = append(all, proxy.Change{Frontend: at, Old: old, New: s})
		}
	}
	return all
}

// tear takes single elements away, as if their writing had not come to pass.
func (m *machine) tear(r *rand.Rand) {
	var at, to objectsPlace
	var s objectsService
	var slots, services []objectsPlace
	for all := m.objects.PlSlots.Iterate(); all.Next(&at, &to); {
		slots = append(slots, at)
	}
	for all := m.objects.PlServices.Iterate(); all.Next(&at, &s); {
		services = append(services, at)
	}
	for _, at := range slots {
		if r.IntN(4) == 0 {
			must(m.t, remove(m.objects.PlSlots, at))
		}
	}
	for _, at := range services {
		if r.IntN(4) == 0 {
			must(m.t, remove(m.objects.PlServices, at))
		}
	}
}
