package kube

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// API asks for and changes single objects of a cluster, as JSON: for the verbs that
// change something once. Paths are the server's.
type API struct{ client rest.Interface }

// NewAPI is of the cluster that a kubeconfig is of, or with "" that of this pod. It
// asks nothing of the server.
func NewAPI(kubeconfig string) (*API, error) {
	c, err := config(kubeconfig)
	if err != nil {
		return nil, err
	}
	cs, err := newClients(c)
	if err != nil {
		return nil, err
	}
	return &API{cs[corev1.SchemeGroupVersion]}, nil
}

// API is of the cluster that the options lead to.
func (o Options) API() (*API, error) {
	core, err := o.core()
	if err != nil {
		return nil, err
	}
	return &API{core}, nil
}

// Get reads an object into into, and says whether there is one.
func (a *API) Get(ctx context.Context, path string, into any, query ...string) (bool, error) {
	r := a.client.Get().AbsPath(path).SetHeader("Accept", "application/json")
	for i := 0; i+1 < len(query); i += 2 {
		r.Param(query[i], query[i+1])
	}
	data, err := raw(ctx, r)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	return err == nil, of(path, err)
}

// Create makes an object in the collection that path is of.
func (a *API) Create(ctx context.Context, path string, object any) error {
	return a.send(ctx, a.client.Post(), "application/json", path, object, nil)
}

// Update replaces an object. What it is then comes into into, where that is not
// nil: a server leaves out what it does not know.
func (a *API) Update(ctx context.Context, path string, object, into any) error {
	return a.send(ctx, a.client.Put(), "application/json", path, object, into)
}

// Patch changes an object by a JSON merge patch (RFC 7386).
func (a *API) Patch(ctx context.Context, path string, patch any) error {
	return a.send(ctx, a.client.Patch(types.MergePatchType), string(types.MergePatchType), path, patch, nil)
}

// Delete deletes an object; one that is not there is no error.
func (a *API) Delete(ctx context.Context, path string) error {
	_, err := raw(ctx, a.client.Delete().AbsPath(path).SetHeader("Accept", "application/json"))
	if apierrors.IsNotFound(err) {
		return nil
	}
	return of(path, err)
}

func (a *API) send(ctx context.Context, r *rest.Request, kind, path string, object, into any) error {
	body, err := json.Marshal(object)
	if err != nil {
		return err
	}
	data, err := raw(ctx, r.AbsPath(path).SetHeader("Accept", "application/json").Body(body).SetHeader("Content-Type", kind))
	if err == nil && into != nil {
		err = json.Unmarshal(data, into)
	}
	return of(path, err)
}

// raw gives the answer as it is. An error says what the server says, which Raw alone
// leaves out.
func raw(ctx context.Context, r *rest.Request) ([]byte, error) {
	data, err := r.Do(ctx).Raw()
	var status metav1.Status
	if err != nil && json.Unmarshal(data, &status) == nil && status.Kind == "Status" && status.Message != "" {
		err = &apierrors.StatusError{ErrStatus: status}
	}
	return data, err
}

// Invalid says that the server refused what an object says, and not who asked.
func Invalid(err error) bool { return apierrors.IsInvalid(err) || apierrors.IsBadRequest(err) }

func of(path string, err error) error {
	if err != nil {
		return fmt.Errorf("kube-apiserver: %s: %w", path, err)
	}
	return nil
}
