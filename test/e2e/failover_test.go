package e2e

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/podlane/podlane/cluster"
	"github.com/podlane/podlane/cluster/apiserver"
	"github.com/podlane/podlane/cluster/kube"
	"github.com/podlane/podlane/test/e2e/internal/control"
)

// TestServers_failOver shuts the way to the server that was found first. What changes
// then comes by another one, and so it does for a source that starts meanwhile.
func TestServers_failOver(t *testing.T) {
	p := control.Start(t, bin)
	a := newAPI(t, p)
	gate := control.NewGate(t, p.Addr)
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	follow := func() (*follower, *apiserver.Servers) {
		s, err := apiserver.New(gate.Addr, "the setting", dir, log)
		if err != nil {
			t.Fatal(err)
		}
		return followKube(t, kube.Options{Kubeconfig: p.Kubeconfig(control.Admin, gate.Addr), Kinds: everyKind, Servers: s}), s
	}
	k, servers := follow()
	k.until("a Snapshot", func(*cluster.Snapshot) bool { return true })
	servers.Learn([]netip.AddrPort{netip.MustParseAddrPort(p.Addr)})
	gate.Shut()
	shut := time.Now()
	_, err := a.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "late"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	late := func(s *cluster.Snapshot) bool {
		return s.Services.Get(cluster.Key{Namespace: "default", Name: "late"}) != nil
	}
	k.until("the Service", late)
	t.Log("a change came by the other server after", time.Since(shut))
	if in := servers.InUse(); !strings.Contains(in, p.Addr) || !strings.Contains(in, gate.Addr+" does not answer") {
		t.Error(in)
	}
	k, _ = follow()
	k.until("the Service, for one that starts now", late)
}
