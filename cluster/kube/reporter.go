package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// Reporter writes what an operator must know of a node to the API: its condition
// NetworkUnavailable, and Events on it. It writes when something changes, and
// nothing at rest. What cannot be written waits, the newest first of all.
type Reporter struct {
	core rest.Interface
	node string
	log  *slog.Logger

	mu        sync.Mutex
	condition *corev1.NodeCondition // to be written; nil is none
	latest    *corev1.NodeCondition // told last, written or not
	events    []*corev1.Event
	wake      chan struct{}
}

// mostEvents bounds those that wait while the server is away.
const mostEvents = 32

// NewReporter reads the kubeconfig and asks nothing of the server.
func NewReporter(o Options) (*Reporter, error) {
	core, err := o.core()
	if err != nil {
		return nil, err
	}
	return &Reporter{core: core, node: o.Node, log: o.Log, wake: make(chan struct{}, 1)}, nil
}

// Condition says whether the node's network is there, with a reason of one word and
// the cause in words.
func (r *Reporter) Condition(available bool, reason, message string) {
	status := corev1.ConditionTrue
	if available {
		status = corev1.ConditionFalse
	}
	now := metav1.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.condition = &corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: status, Reason: reason, Message: message,
		LastHeartbeatTime: now, LastTransitionTime: now}
	r.latest = r.condition
	r.wakeUp()
}

// Event says something of the node that has a UID.
func (r *Reporter) Event(uid string, warning bool, reason, message string) {
	typ := corev1.EventTypeNormal
	if warning {
		typ = corev1.EventTypeWarning
	}
	now := metav1.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.events) == mostEvents {
		r.events = r.events[1:]
	}
	r.events = append(r.events, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: fmt.Sprintf("%s.podlane-%x", r.node, now.UnixNano())},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: r.node, UID: types.UID(uid)},
		Type:           typ, Reason: reason, Message: short(message), Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "podlane", Host: r.node},
	})
	r.wakeUp()
}

func (r *Reporter) wakeUp() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	const first, most = time.Second, time.Minute
	pause, failed := first, false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		err := r.write(ctx)
		if err == nil {
			pause, failed = first, false
			continue
		}
		if !failed && ctx.Err() == nil {
			r.log.Warn("the node's condition and Events cannot be written; it is tried again", "err", err)
		}
		failed = true
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, most)
		r.wakeUp()
	}
}

// write writes all that waits.
func (r *Reporter) write(ctx context.Context) error {
	for {
		r.mu.Lock()
		condition := r.condition
		var event *corev1.Event
		if len(r.events) > 0 {
			event = r.events[0]
		}
		r.mu.Unlock()
		var err error
		switch {
		case condition != nil:
			err = r.patch(ctx, condition)
		case event != nil:
			err = r.post(ctx, event)
		default:
			return nil
		}
		if Invalid(err) { // it would be refused again, and what comes after it would wait
			r.log.Warn("the API server refuses what is told of the node", "err", err)
			if condition != nil { // a policy of others may be mended
				time.AfterFunc(askAgain, func() { r.restore(condition) })
			}
			err = nil
		}
		if err != nil {
			return err
		}
		r.written(condition, event)
	}
}

// askAgain is after how long a condition that was refused is told again.
const askAgain = time.Minute

// restore has a condition told again, where there is no newer one.
func (r *Reporter) restore(c *corev1.NodeCondition) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.condition == nil && r.latest == c {
		r.condition = c
		r.wakeUp()
	}
}

// written forgets what need not be written any more: the condition, or else the Event.
func (r *Reporter) written(condition *corev1.NodeCondition, event *corev1.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case condition != nil && r.condition == condition:
		r.condition = nil
	case condition == nil && len(r.events) > 0 && r.events[0] == event:
		r.events = r.events[1:]
	}
}

func (r *Reporter) post(ctx context.Context, e *corev1.Event) error {
	err := r.core.Post().Namespace(e.Namespace).Resource("events").Body(e).Do(ctx).Error()
	if err == nil || apierrors.IsAlreadyExists(err) { // it was stored, and the answer was lost
		return nil
	}
	return fmt.Errorf("event %s: %w", e.Reason, err)
}

func (r *Reporter) patch(ctx context.Context, c *corev1.NodeCondition) error {
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []*corev1.NodeCondition{c}}})
	if err != nil {
		return err
	}
	err = r.core.Patch(types.StrategicMergePatchType).Resource("nodes").Name(r.node).SubResource("status").Body(body).Do(ctx).Error()
	if err == nil || apierrors.IsNotFound(err) { // a Node that is gone has no condition
		return nil
	}
	return fmt.Errorf("node %s: condition: %w", r.node, err)
}
