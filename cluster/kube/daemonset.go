package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// DaemonSet is one DaemonSet of a cluster, known only by its name: for taking
// kube-proxy's away.
type DaemonSet struct {
	clients         clients
	namespace, name string
}

// NewDaemonSet names a DaemonSet of the cluster that a kubeconfig is of, or with
// "" that of this pod. It asks nothing of the server.
func NewDaemonSet(kubeconfig, namespace, name string) (*DaemonSet, error) {
	c, err := config(kubeconfig)
	if err != nil {
		return nil, err
	}
	cs, err := newClients(c)
	if err != nil {
		return nil, err
	}
	return &DaemonSet{cs, namespace, name}, nil
}

func (d *DaemonSet) path() string {
	return fmt.Sprintf("/apis/apps/v1/namespaces/%s/daemonsets/%s", d.namespace, d.name)
}

// JSON gives the object as it is, nil where there is none.
func (d *DaemonSet) JSON(ctx context.Context) ([]byte, error) {
	data, err := d.clients[corev1.SchemeGroupVersion].Get().AbsPath(d.path()).SetHeader("Accept", "application/json").Do(ctx).Raw()
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("daemonset %s/%s: %w", d.namespace, d.name, err)
	}
	return data, nil
}

// Delete deletes the object; its pods end within their grace period. One that is
// not there is no error.
func (d *DaemonSet) Delete(ctx context.Context) error {
	err := d.clients[corev1.SchemeGroupVersion].Delete().AbsPath(d.path()).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete daemonset %s/%s: %w", d.namespace, d.name, err)
	}
	return nil
}
