package kube

import (
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podlane/podlane/cluster"
)

// Before the first list it is not known what there is, and a later one never shows
// without a policy that stays.
func TestPolicies_All(t *testing.T) {
	p := &Policies{known: map[cluster.Key]types.UID{}, told: map[types.UID]bool{}, wake: make(chan struct{}, 1)}
	if all, known := p.All(); known || len(all) != 0 {
		t.Errorf("before the list: %v %v", all, known)
	}
	list := []any{
		&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "p", UID: "1"}},
		&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: "2"}},
	}
	if err := p.Replace(list, ""); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for !stop.Load() {
			_ = p.Replace(list, "")
		}
	}()
	for range 20000 {
		if all, known := p.All(); !known || len(all) != 2 || all[0] != (cluster.Key{Namespace: "a", Name: "p"}) {
			t.Errorf("%v %v", all, known)
			break
		}
	}
	stop.Store(true)
	<-ended
}
