package kube

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// NodeEvents writes Events on one Node.
type NodeEvents struct {
	core rest.Interface
	node string
}

// NewNodeEvents reads the kubeconfig and asks nothing of the server. The Node is
// that of the Options.
func NewNodeEvents(o Options) (*NodeEvents, error) {
	core, err := o.core()
	if err != nil {
		return nil, err
	}
	return &NodeEvents{core, o.Node}, nil
}

// mostMessage is how long the API server lets an Event's message be.
const mostMessage = 1024

// short cuts a message that is longer.
func short(message string) string {
	if len(message) <= mostMessage {
		return message
	}
	return strings.ToValidUTF8(message[:mostMessage-3], "") + "..."
}

// Warn writes a warning. There is one Event for a reason, until the server forgets
// it after an hour: one that is there already is as good.
func (e *NodeEvents) Warn(ctx context.Context, reason, message string) error {
	now := metav1.Now()
	err := e.core.Post().Namespace(metav1.NamespaceDefault).Resource("events").Body(&corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: e.node + ".podlane-" + strings.ToLower(reason)},
		// The kubelet gives its own Events the Node's name for a UID too, and kubectl describe
		// looks for that.
		InvolvedObject: corev1.ObjectReference{Kind: "Node", Name: e.node, UID: types.UID(e.node)},
		Type:           corev1.EventTypeWarning, Reason: reason, Message: short(message), Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "podlane", Host: e.node},
	}).Do(ctx).Error()
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("event %s on node %s: %w", reason, e.node, err)
	}
	return nil
}
