package convert

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestNode_leaving(t *testing.T) {
	now := metav1.Now()
	for name, tc := range map[string]struct {
		node corev1.Node
		want bool
	}{
		"stays":        {corev1.Node{}, false},
		"other taint":  {corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "dedicated"}}}}, false},
		"autoscaler":   {corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "a"}, {Key: "ToBeDeletedByClusterAutoscaler"}}}}, true},
		"being delete": {corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}}, true},
	} {
		if got := Node(&tc.node).Leaving; got != tc.want {
			t.Errorf("%s: leaving %v", name, got)
		}
	}
}

func TestEndpointSlice_triggered(t *testing.T) {
	const at = "2026-11-22T10:00:00.123456789Z"
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, ObjectMeta: metav1.ObjectMeta{
		Labels:      map[string]string{discoveryv1.LabelServiceName: "web"},
		Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: at}}}
	if got := EndpointSlice(s).Triggered; got != at {
		t.Errorf("triggered %q", got)
	}
}
