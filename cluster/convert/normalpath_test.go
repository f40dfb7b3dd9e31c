package convert

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPod_normalPath(t *testing.T) {
	for want, annotations := range map[string]map[string]string{
		"":          {"podlane.dev/fast-path": "on"},
		"opt-out":   {"podlane.dev/fast-path": "off", "kubernetes.io/egress-bandwidth": "1M"},
		"bandwidth": {"kubernetes.io/ingress-bandwidth": "10M"},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: annotations}, Spec: corev1.PodSpec{NodeName: "n1"}}
		if got := Pod(pod).NormalPath; got != want {
			t.Errorf("%v: %q, want %q", annotations, got, want)
		}
	}
}
