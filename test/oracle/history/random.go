package history

import (
	"maps"
	"math/rand/v2"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Random makes a history. The same seed makes the same one.
func Random(seed uint64, steps int) History {
	m := &maker{Rand: rand.New(rand.NewPCG(seed, 0)), State: NewState()}
	h := History{Seed: seed, NodePortAddresses: pick(m.Rand, nil, nil, nil, []string{"0.0.0.0/0", "::/0"}, []string{"192.0.3.0/24"}, []string{"fd00:192::/64", "fd00:193::/64"})}
	m.change(Change{Zone: pick(m.Rand, "za", "za", "zb", "-")})
	if chance(m.Rand, 80) {
		m.change(Change{ServiceCIDRs: []string{"10.96.0.0/16", "fd00:96::/112"}})
	}
	m.services = pick(m.Rand, 2, 3, 4, 5)
	for i := range m.services {
		m.renew(i)
	}
	if chance(m.Rand, 50) {
		m.bind()
	}
	h.Steps = append(h.Steps, m.take())
	for len(h.Steps) < steps {
		for range pick(m.Rand, 1, 1, 2, 3) {
			m.mutate()
		}
		h.Steps = append(h.Steps, m.take())
	}
	return h
}

// maker makes a step: the state as it is and how it came about.
type maker struct {
	*rand.Rand
	*State
	services int
	step     Step
}

func (m *maker) take() Step {
	s := m.step
	m.step = nil
	return s
}

func (m *maker) change(c Change) {
	m.Apply(c)
	m.step = append(m.step, c)
}

func (m *maker) renew(i int) {
	s := service(m.Rand, i)
	m.change(Change{Service: s})
	m.setSlices(s.Name, slicesOf(m.Rand, s))
}

// setSlices makes these the only slices of a Service, in any order of events.
func (m *maker) setSlices(service string, want []*discoveryv1.EndpointSlice) {
	m.Shuffle(len(want), func(i, j int) { want[i], want[j] = want[j], want[i] })
	for _, old := range m.Of(service) {
		if !slices.ContainsFunc(want, func(w *discoveryv1.EndpointSlice) bool { return w.Name == old.Name }) {
			m.change(Change{DeleteSlice: old.Name})
		}
	}
	for _, w := range want {
		m.change(Change{Slice: w})
	}
}

// mutate makes some change, that has a reason to be looked at.
func (m *maker) mutate() {
	i := m.IntN(m.services)
	s := m.Services[name(i)]
	switch n := m.IntN(100); {
	case n < 5:
		m.change(Change{Zone: pick(m.Rand, "za", "zb", "zc", "-")})
	case n < 9:
		m.change(Change{ServiceCIDRs: pick(m.Rand, []string{"-"}, []string{"10.96.0.0/16", "fd00:96::/112"}, []string{"10.96.0.0/24"}, []string{"10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112"})})
	case n < 13:
		m.change(Change{Restart: true})
	case n < 19:
		m.bind()
	case s == nil:
		m.renew(i)
	case n < 26:
		m.change(Change{DeleteService: s.Name})
		if chance(m.Rand, 70) {
			m.setSlices(s.Name, nil)
		}
	case n < 50:
		m.setSlices(s.Name, slicesOf(m.Rand, s))
	case n < 65:
		m.changeSlice(s)
	default:
		m.changeService(s.DeepCopy(), i)
	}
}

// bind makes an address of a load balancer, or a cluster IP, the node's own, or no
// longer.
func (m *maker) bind() {
	if len(m.Bound) > 0 && chance(m.Rand, 50) {
		m.change(Change{Unbind: m.Bound[0]})
		return
	}
	for _, name := range slices.Sorted(maps.Keys(m.Services)) {
		var ips []string
		for _, in := range m.Services[name].Status.LoadBalancer.Ingress {
			ips = append(ips, in.IP)
		}
		if chance(m.Rand, 20) {
			ips = m.Services[name].Spec.ClusterIPs
		}
		for _, ip := range ips {
			own := slices.Contains(m.Bound, ip) || ip == OtherAddrs[0].String() || ip == OtherAddrs[1].String()
			if ip != "" && ip == canonical(ip) && !own && chance(m.Rand, 60) {
				m.change(Change{Bind: ip})
				return
			}
		}
	}
}

// changeSlice changes one thing of one slice.
func (m *maker) changeSlice(s *corev1.Service) {
	of := m.Of(s.Name)
	if len(of) == 0 {
		return
	}
	es := pick(m.Rand, of...).DeepCopy()
	switch n := m.IntN(10); {
	case n == 0:
		if _, ok := es.Labels[corev1.IsHeadlessService]; ok {
			delete(es.Labels, corev1.IsHeadlessService)
		} else {
			es.Labels[corev1.IsHeadlessService] = ""
		}
	case n == 1:
		m.change(Change{DeleteSlice: es.Name})
		return
	case n < 5 && len(es.Endpoints) > 0:
		es.Endpoints[m.IntN(len(es.Endpoints))].Conditions = conditions(m.Rand)
	case n < 7 && len(es.Endpoints) > 0:
		k := m.IntN(len(es.Endpoints))
		es.Endpoints = slices.Delete(es.Endpoints, k, k+1)
	default:
		endpoint(m.Rand, es, es.AddressType == discoveryv1.AddressTypeIPv6)
	}
	if m.twins(es, of) {
		return
	}
	m.change(Change{Slice: es})
}

// twins says that two slices would have an endpoint that no one could choose from:
// which one counts, kube-proxy leaves to chance.
func (m *maker) twins(es *discoveryv1.EndpointSlice, of []*discoveryv1.EndpointSlice) bool {
	terminating := func(e discoveryv1.Endpoint) bool { return e.Conditions.Terminating != nil && *e.Conditions.Terminating }
	for _, o := range of {
		for _, e := range o.Endpoints {
			for _, f := range es.Endpoints {
				if o.Name != es.Name && e.Addresses[0] == f.Addresses[0] && terminating(e) == terminating(f) {
					return true
				}
			}
		}
	}
	return false
}

func (m *maker) changeService(s *corev1.Service, i int) {
	const proxyName = "service.kubernetes.io/service-proxy-name"
	switch m.IntN(11) {
	case 0:
		if s.Labels[proxyName] == "" {
			s.Labels = map[string]string{proxyName: "another"}
		} else {
			s.Labels = nil
		}
	case 1, 2:
		kind(m.Rand, s, i)
		policies(m.Rand, s)
	case 3:
		policies(m.Rand, s)
	case 4, 9, 10:
		affinity(m.Rand, s)
	case 5:
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			sourceRanges(m.Rand, s)
		} else {
			policies(m.Rand, s)
		}
	case 6:
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			ingress(m.Rand, s, i)
		} else {
			affinity(m.Rand, s)
		}
	case 7: // the slices follow, or not yet
		ports(m.Rand, s)
		nodePorts(m.Rand, s, i)
		if chance(m.Rand, 70) {
			m.setSlices(s.Name, slicesOf(m.Rand, s))
		}
	case 8:
		families(m.Rand, s, i)
	}
	m.change(Change{Service: s})
}
