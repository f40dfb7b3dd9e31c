package lab

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster/file"
)

// crowd are Services with a slice of one endpoint each.
func crowd(n int) *file.Objects {
	o := &file.Objects{}
	for i := range n {
		m := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("s-", i)}
		o.Services = append(o.Services, &corev1.Service{ObjectMeta: m, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}})
		ready := i%2 == 0
		m.Labels = map[string]string{discoveryv1.LabelServiceName: m.Name}
		o.EndpointSlices = append(o.EndpointSlices, &discoveryv1.EndpointSlice{ObjectMeta: m, AddressType: discoveryv1.AddressTypeIPv4,
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}})
	}
	return o
}

// TestServiceStatuses counts each Service's endpoints, and costs what there is: among
// twice as many Services not four times as much.
func TestServiceStatuses(t *testing.T) {
	cost := func(n int) float64 {
		o := crowd(n)
		for i, st := range serviceStatuses(o) {
			if st.Name != o.Services[i].Name || st.Endpoints != 1 || st.Ready != 1-i%2 {
				t.Fatalf("Service %d: %+v", i, st)
			}
		}
		return testing.AllocsPerRun(1, func() { serviceStatuses(o) })
	}
	if few, many := cost(100), cost(200); many > 3*few {
		t.Errorf("%.0f allocations for 100 Services, %.0f for 200", few, many)
	}
}
