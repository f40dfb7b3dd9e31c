package kube

import (
	"context"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// Keep runs in the cluster: it waits for the end of its input, which is the end of the command
// attached to it, or for the given moment, and then deletes the namespace, it itself included.
func Keep(ctx context.Context, in io.Reader, namespace string, until time.Time) error {
	c, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	a := &api{config: c}
	if a.core, err = restClient(c, corev1.SchemeGroupVersion, "/api"); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = io.Copy(io.Discard, in) }()
	select {
	case <-ended:
	case <-time.After(time.Until(until)):
	case <-ctx.Done():
		return ctx.Err()
	}
	for ; ctx.Err() == nil; time.Sleep(time.Second) {
		if err = a.deleteNamespace(ctx, namespace); err == nil {
			return nil
		}
	}
	return err
}
