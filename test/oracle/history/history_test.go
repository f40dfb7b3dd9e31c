package history

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestRandom_sameSeedSameHistory(t *testing.T) {
	for seed := range uint64(20) {
		a, b := Random(seed, 5), Random(seed, 5)
		if !reflect.DeepEqual(a, b) {
			t.Fatalf("seed %d makes two histories", seed)
		}
		back, err := Parse([]byte(a.YAML()))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if back.YAML() != a.YAML() {
			t.Errorf("seed %d: does not come back from YAML", seed)
		}
	}
}

// No two Services may have a frontend in common.
func TestRandom_noConflicts(t *testing.T) {
	for seed := range uint64(200) {
		h := Random(seed, 4)
		for n := 1; n <= len(h.Steps); n++ {
			owner := map[string]string{}
			for _, s := range h.After(n).Services {
				for _, in := range s.Status.LoadBalancer.Ingress {
					claim(t, owner, in.IP, s)
				}
				for _, ip := range append(append([]string{}, s.Spec.ClusterIPs...), s.Spec.ExternalIPs...) {
					claim(t, owner, ip, s)
				}
				for _, p := range s.Spec.Ports {
					if p.NodePort != 0 {
						claim(t, owner, fmt.Sprint("node port ", p.NodePort), s)
					}
				}
			}
		}
	}
}

func claim(t *testing.T, owner map[string]string, what string, s *corev1.Service) {
	t.Helper()
	if o, ok := owner[what]; ok && o != s.Name && what != "" {
		t.Errorf("%q is of %s and %s", what, o, s.Name)
	}
	owner[what] = s.Name
}

// What shows only with two objects together is shrunk to these.
func TestShrink(t *testing.T) {
	h := Random(7, 6)
	show := func(h History) bool {
		s := h.After(len(h.Steps))
		for _, es := range s.Slices {
			if svc := s.Services["svc1"]; svc != nil && len(svc.Spec.Ports) > 0 && strings.HasPrefix(es.Name, "svc1-") && len(es.Endpoints) > 0 {
				return true
			}
		}
		return false
	}
	for !show(h) {
		h = Random(h.Seed+1, 6)
	}
	small := Shrink(h, 1000, show)
	if !show(small) {
		t.Fatal("the shrunk history does not show it")
	}
	if n := small.count(); n != 2 || len(small.Steps) != 1 {
		t.Errorf("%d changes in %d steps are left, want a Service and a slice:\n%s", n, len(small.Steps), small.YAML())
	}
}
