package kube

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	api "k8s.io/client-go/kubernetes/scheme"

	"github.com/podlane/podlane/cluster"
)

func TestServiceEvents(t *testing.T) {
	type request struct {
		path  string
		event *corev1.Event
	}
	got := make(chan request, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		o, _, err := api.Codecs.UniversalDeserializer().Decode(body, nil, nil)
		if err != nil {
			t.Error(err)
		}
		e, _ := o.(*corev1.Event)
		got <- request{r.Method + " " + r.URL.Path, e}
		w.WriteHeader(http.StatusForbidden) // logged, no more
	}))
	defer s.Close()
	e, err := NewServiceEvents(Options{Kubeconfig: kubeconfig(t, server(strings.TrimPrefix(s.URL, "http://"))), Node: "n1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	e.WarnService(cluster.Key{Namespace: "shop", Name: "web"}, "FailedToStartServiceHealthcheck", "the port is taken")
	select {
	case r := <-got:
		if r.path != "POST /api/v1/namespaces/shop/events" {
			t.Error(r.path)
		}
		if r.event == nil || r.event.Type != "Warning" || r.event.Reason != "FailedToStartServiceHealthcheck" || r.event.Message != "node n1: the port is taken" ||
			r.event.InvolvedObject.Kind != "Service" || r.event.InvolvedObject.Name != "web" || r.event.InvolvedObject.Namespace != "shop" || !strings.HasPrefix(r.event.Name, "web.") {
			t.Errorf("%+v", r.event)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no Event")
	}
}
