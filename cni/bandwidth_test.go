package cni

import (
	"testing"

	"github.com/podlane/podlane/kernel/link"
)

func TestShapes(t *testing.T) {
	for _, c := range []struct {
		in       *Bandwidth
		to, from link.Shape
	}{
		{nil, link.Shape{}, link.Shape{}},
		{&Bandwidth{}, link.Shape{}, link.Shape{}},
		// What containerd passes for ingress-bandwidth: 10M.
		{&Bandwidth{IngressRate: 10_000_000, IngressBurst: 1<<32 - 1}, link.Shape{Rate: 1_250_000, Burst: 125_000}, link.Shape{}},
		{&Bandwidth{EgressRate: 8_000_000_000, EgressBurst: 8_000_000}, link.Shape{}, link.Shape{Rate: 1_000_000_000, Burst: 1_000_000}},
		{&Bandwidth{IngressRate: 1, EgressRate: 100_000}, link.Shape{Rate: 1, Burst: leastBurst}, link.Shape{Rate: 12_500, Burst: leastBurst}},
	} {
		if to, from := (Allocation{Bandwidth: c.in}).Shapes(); to != c.to || from != c.from {
			t.Errorf("%+v: %+v %+v, want %+v %+v", c.in, to, from, c.to, c.from)
		}
	}
}
