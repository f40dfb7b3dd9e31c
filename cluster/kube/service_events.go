package kube

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/podlane/podlane/cluster"
)

// ServiceEvents writes Events on Services: what keeps a node from serving one. It
// needs no more of the API server than that right.
type ServiceEvents struct {
	core rest.Interface
	node string
	log  *slog.Logger
}

// eventTimeout is how long the server has to take one.
const eventTimeout = 10 * time.Second

// NewServiceEvents reads the kubeconfig and asks nothing of the server.
func NewServiceEvents(o Options) (*ServiceEvents, error) {
	core, err := o.core()
	if err != nil {
		return nil, err
	}
	return &ServiceEvents{core: core, node: o.Node, log: o.Log}, nil
}

// WarnService writes a warning about a Service, without making the caller wait. It
// is written once: where that fails, the log says so.
func (e *ServiceEvents) WarnService(k cluster.Key, reason, message string) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), eventTimeout)
		defer cancel()
		err := e.core.Post().Namespace(k.Namespace).Resource("events").Body(e.ofService(k, reason, message)).Do(ctx).Error()
		if err != nil {
			e.log.Warn("Event on a Service", "service", k.String(), "reason", reason, "err", err)
		}
	}()
}

// ofService has kube-proxy's form: the UID that it knows of a Service is its name.
func (e *ServiceEvents) ofService(k cluster.Key, reason, message string) *corev1.Event {
	now := metav1.Now()
	return &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: k.Namespace, Name: fmt.Sprintf("%s.%x", k.Name, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Service", Namespace: k.Namespace, Name: k.Name, UID: types.UID(k.String())},
		Type:           corev1.EventTypeWarning, Reason: reason, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Message: fmt.Sprintf("node %s: %s", e.node, message),
		Source:  corev1.EventSource{Component: "podlane", Host: e.node},
	}
}
