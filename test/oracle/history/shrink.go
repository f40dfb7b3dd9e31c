package history

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Shrink gives a history that still shows what show looks for, with as little in it
// as can be found in so many tries. The last step is where it shows.
func Shrink(h History, tries int, show func(History) bool) History {
	s := shrinker{best: h, left: tries, show: show}
	s.flatten()
	for before := -1; before != s.left && s.left > 0; {
		before = s.left
		s.drop()
		s.thin()
		if !s.better {
			break
		}
		s.better = false
	}
	return s.best
}

type shrinker struct {
	best   History
	left   int
	show   func(History) bool
	better bool
}

// try takes h if it shows as well.
func (s *shrinker) try(h History) bool {
	if s.left <= 0 {
		return false
	}
	s.left--
	if !s.show(h) {
		return false
	}
	s.best, s.better = h, true
	return true
}

// flatten tries the last state alone, then one that begins later.
func (s *shrinker) flatten() {
	all := s.best
	flat := all
	flat.Steps = []Step{all.After(len(all.Steps)).Changes()}
	if s.try(flat) {
		return
	}
	for first := len(all.Steps) - 1; first > 0; first-- {
		late := all
		late.Steps = append([]Step{all.After(first).Changes()}, all.Steps[first:]...)
		if s.try(late) {
			return
		}
	}
}

// drop leaves out changes: halves of them, quarters, single ones.
func (s *shrinker) drop() {
	for size := max(s.best.count()/2, 1); size > 0; size /= 2 {
		for at := 0; at < s.best.count(); {
			if !s.try(s.best.without(at, size)) {
				at += size
			}
		}
	}
}

func (h History) count() (n int) {
	for _, s := range h.Steps {
		n += len(s)
	}
	return n
}

// without leaves out size changes from the at-th on. Steps stay, without changes.
func (h History) without(at, size int) History {
	out, n := h, 0
	out.Steps = nil
	for _, s := range h.Steps {
		var kept Step
		for _, c := range s {
			if n < at || n >= at+size {
				kept = append(kept, c)
			}
			n++
		}
		out.Steps = append(out.Steps, kept)
	}
	return out
}

// thin makes the objects smaller, one property at a time.
func (s *shrinker) thin() {
	for i := 0; i < len(s.best.Steps); i++ {
		for j := 0; j < len(s.best.Steps[i]); j++ {
			for k := 0; ; k++ {
				c, more := thinner(s.best.Steps[i][j], k)
				if !more {
					break
				}
				h := s.best
				h.Steps = slices.Clone(h.Steps)
				h.Steps[i] = slices.Clone(h.Steps[i])
				h.Steps[i][j] = c
				if s.try(h) {
					k--
				}
			}
		}
	}
	if len(s.best.NodePortAddresses) > 0 {
		h := s.best
		h.NodePortAddresses = nil
		s.try(h)
	}
}

// thinner leaves out the k-th thing of a change; more says that there is one.
func thinner(c Change, k int) (_ Change, more bool) {
	if c.Slice != nil {
		c.Slice = c.Slice.DeepCopy()
		if k < len(c.Slice.Endpoints) {
			c.Slice.Endpoints = slices.Delete(c.Slice.Endpoints, k, k+1)
			return c, true
		}
		k -= len(c.Slice.Endpoints)
		if k < len(c.Slice.Ports) {
			c.Slice.Ports = slices.Delete(c.Slice.Ports, k, k+1)
			return c, true
		}
		return c, false
	}
	if c.Service == nil {
		return c, false
	}
	c.Service = c.Service.DeepCopy()
	ways := serviceWays(c.Service)
	if k >= len(ways) {
		return c, false
	}
	ways[k]()
	return c, true
}

// serviceWays are the ways to make a Service simpler.
func serviceWays(s *corev1.Service) (ways []func()) {
	add := func(there bool, f func()) {
		if there {
			ways = append(ways, f)
		}
	}
	for i := range s.Spec.Ports {
		add(len(s.Spec.Ports) > 1, func() { s.Spec.Ports = slices.Delete(s.Spec.Ports, i, i+1) })
		add(s.Spec.Ports[i].NodePort != 0, func() { s.Spec.Ports[i].NodePort = 0 })
	}
	for i := range s.Spec.ExternalIPs {
		add(true, func() { s.Spec.ExternalIPs = slices.Delete(s.Spec.ExternalIPs, i, i+1) })
	}
	for i := range s.Status.LoadBalancer.Ingress {
		add(true, func() { s.Status.LoadBalancer.Ingress = slices.Delete(s.Status.LoadBalancer.Ingress, i, i+1) })
	}
	for i := range s.Spec.LoadBalancerSourceRanges {
		add(true, func() {
			s.Spec.LoadBalancerSourceRanges = slices.Delete(s.Spec.LoadBalancerSourceRanges, i, i+1)
		})
	}
	add(len(s.Spec.ClusterIPs) > 1, func() {
		s.Spec.ClusterIPs, s.Spec.IPFamilies = s.Spec.ClusterIPs[:1], s.Spec.IPFamilies[:1]
	})
	add(s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP, func() {
		s.Spec.SessionAffinity, s.Spec.SessionAffinityConfig = corev1.ServiceAffinityNone, nil
	})
	add(s.Spec.InternalTrafficPolicy != nil, func() { s.Spec.InternalTrafficPolicy = nil })
	add(s.Spec.AllocateLoadBalancerNodePorts != nil, func() { s.Spec.AllocateLoadBalancerNodePorts = nil })
	add(s.Spec.HealthCheckNodePort != 0, func() { s.Spec.HealthCheckNodePort = 0 })
	return ways
}
