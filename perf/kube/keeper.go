package kube

import (
	"context"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// unheld is how long the keeper waits for the command to attach to it.
const unheld = 20 * time.Second

// Keep runs in the cluster: it waits for the end of its input, which is the end of the command
// attached to it, or for the given moment, and then deletes the namespace, it itself included. A
// command that does not attach soon is taken for dead too.
func Keep(ctx context.Context, in io.Reader, namespace string, until time.Time) error {
	c, err := rest.InClusterConfig()
	if err != nil {
		return err
	}
	a := &api{config: c}
	if a.core, err = restClient(c, corev1.SchemeGroupVersion, "/api"); err != nil {
		return err
	}
	held, ended := make(chan struct{}), make(chan struct{})
	go follow(in, held, ended)
	select {
	case <-held:
		select {
		case <-ended:
		case <-time.After(time.Until(until)):
		case <-ctx.Done():
			return ctx.Err()
		}
	case <-time.After(unheld):
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

// follow tells when input begins, and when it ends.
func follow(in io.Reader, held, ended chan<- struct{}) {
	defer close(ended)
	if n, _ := in.Read(make([]byte, 1)); n == 0 {
		close(held)
		return
	}
	close(held)
	_, _ = io.Copy(io.Discard, in)
}
