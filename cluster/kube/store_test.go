package kube

import (
	"errors"
	"fmt"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/podlane/podlane/cluster"
)

// twoWatches are the stores of the slices of NamedServices.
func twoWatches(t *testing.T) (*Source, []*store) {
	t.Helper()
	s, err := New(Options{Kubeconfig: kubeconfig(t, server("127.0.0.1:1")), Kinds: NamedServices})
	if err != nil {
		t.Fatal(err)
	}
	var out []*store
	for _, st := range s.stores {
		if st.resource == sliceKind.resource {
			out = append(out, st)
		}
	}
	if len(out) != 2 {
		t.Fatalf("%d stores of slices", len(out))
	}
	return s, out
}

func sliceAt(version int) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-x", ResourceVersion: fmt.Sprint(version),
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{fmt.Sprint("10.0.0.", version)}}},
	}
}

// TestStore_without: what a server does not have or does not give keeps nothing
// waiting where it is optional; what cannot be reached does.
func TestStore_without(t *testing.T) {
	none := apierrors.NewNotFound(schema.GroupResource{Resource: "servicecidrs"}, "")
	forbidden := apierrors.NewForbidden(schema.GroupResource{Resource: "servicecidrs"}, "", errors.New("no role"))
	for _, tc := range []struct {
		kind kind
		err  error
		want bool
	}{{cidrKind, none, true}, {cidrKind, forbidden, true}, {cidrKind, errors.New("connection refused"), false}, {cidrKind, nil, false}, {nodeKind, forbidden, false}} {
		s := &store{Source: &Source{wake: make(chan struct{}, 1)}, kind: tc.kind}
		if got := s.without(tc.err); got != tc.want || s.synced != tc.want {
			t.Errorf("%s, %v: without it %v, synced %v", tc.kind.resource, tc.err, got, s.synced)
		}
	}
}

// TestStore_claim: a slice whose labels move it from one watch to the other is
// there in its newest version, in whatever order the watches tell.
func TestStore_claim(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(from, to *store) error
		want string // address; "" is no slice
	}{
		{"added, then deleted", func(from, to *store) error { _ = to.Add(sliceAt(6)); return from.Delete(sliceAt(6)) }, "10.0.0.6"},
		{"deleted, then added", func(from, to *store) error { _ = from.Delete(sliceAt(6)); return to.Add(sliceAt(6)) }, "10.0.0.6"},
		{"an old version comes last", func(from, to *store) error {
			_ = to.Add(sliceAt(7))
			_ = from.Update(sliceAt(6))
			return from.Delete(sliceAt(7))
		}, "10.0.0.7"},
		{"there and back", func(from, to *store) error {
			_ = to.Add(sliceAt(6))
			_ = from.Add(sliceAt(8))
			return to.Delete(sliceAt(8))
		}, "10.0.0.8"},
		{"and gone", func(from, to *store) error {
			_ = to.Add(sliceAt(6))
			_ = from.Delete(sliceAt(6))
			return to.Delete(sliceAt(9))
		}, ""},
		{"listed anew without it", func(from, to *store) error { _ = to.Add(sliceAt(6)); return from.Replace(nil, "9") }, "10.0.0.6"},
		{"listed anew by the one that has it", func(from, to *store) error { return from.Replace(nil, "9") }, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, st := twoWatches(t)
			if err := st[0].Add(sliceAt(5)); err != nil {
				t.Fatal(err)
			}
			if err := test.do(st[0], st[1]); err != nil {
				t.Fatal(err)
			}
			got := ""
			if sl := s.builder.Publish().Slices.Get(cluster.Key{Namespace: "default", Name: "web-x"}); sl != nil {
				got = sl.Endpoints[0].Address.String()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
