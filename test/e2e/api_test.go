package e2e

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podlane/podlane/cluster/file"
	"github.com/podlane/podlane/test/e2e/internal/control"
)

// api writes objects through the API server, as kubectl apply and the controllers
// that own a status would.
type api struct {
	t *testing.T
	kubernetes.Interface
}

func newAPI(t *testing.T, p *control.Plane) *api {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", p.Kubeconfig(control.Admin, p.Addr))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	a := &api{t, client}
	a.awaitNamespace(metav1.NamespaceDefault)
	return a
}

// awaitNamespace waits for what the API server makes itself after its start.
func (a *api) awaitNamespace(name string) {
	a.t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		_, err := a.CoreV1().Namespaces().Get(context.Background(), name, metav1.GetOptions{})
		if err == nil {
			return
		}
		if time.Now().After(end) {
			a.t.Fatal(err)
		}
	}
}

// resource is the part of a typed client that this file needs.
type resource[T metav1.Object] interface {
	Create(context.Context, T, metav1.CreateOptions) (T, error)
	Update(context.Context, T, metav1.UpdateOptions) (T, error)
	Get(context.Context, string, metav1.GetOptions) (T, error)
	Delete(context.Context, string, metav1.DeleteOptions) error
}

type withStatus[T metav1.Object] interface {
	UpdateStatus(context.Context, T, metav1.UpdateOptions) (T, error)
}

// put creates or replaces an object and its status.
func put[T metav1.Object](t *testing.T, r resource[T], o T) {
	t.Helper()
	ctx := context.Background()
	// Create would not tell that the Service exists: its address is taken.
	now, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		now, err = r.Create(ctx, o, metav1.CreateOptions{})
	case err == nil:
		o.SetResourceVersion(now.GetResourceVersion())
		now, err = r.Update(ctx, o, metav1.UpdateOptions{})
	}
	if err == nil {
		if s, ok := r.(withStatus[T]); ok && hasStatus(o) {
			o.SetResourceVersion(now.GetResourceVersion())
			_, err = s.UpdateStatus(ctx, o, metav1.UpdateOptions{})
		}
	}
	if err != nil {
		t.Fatalf("%T %s/%s: %v", o, o.GetNamespace(), o.GetName(), err)
	}
}

// hasStatus says whether the status of o is a part of the tests; every typed client
// has the method.
func hasStatus(o any) bool {
	switch o.(type) {
	case *corev1.Node, *corev1.Pod:
		return true
	}
	return false
}

func remove[T metav1.Object](t *testing.T, r resource[T], name string) {
	t.Helper()
	now := int64(0)
	err := r.Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

// putAll puts all objects, in an order that the API accepts.
func (a *api) putAll(o *file.Objects) {
	a.t.Helper()
	for _, x := range o.Namespaces {
		put(a.t, a.CoreV1().Namespaces(), x)
	}
	for _, x := range o.Nodes {
		put(a.t, a.CoreV1().Nodes(), x)
	}
	for _, x := range o.Pods {
		put(a.t, a.CoreV1().Pods(x.Namespace), x)
	}
	for _, x := range o.Services {
		put(a.t, a.CoreV1().Services(x.Namespace), x)
	}
	for _, x := range o.EndpointSlices {
		put(a.t, a.DiscoveryV1().EndpointSlices(x.Namespace), x)
	}
}

// everything gives all objects of the kinds that Podlane reads.
func (a *api) everything() []any {
	a.t.Helper()
	ctx, all := context.Background(), metav1.ListOptions{}
	nodes, err1 := a.CoreV1().Nodes().List(ctx, all)
	namespaces, err2 := a.CoreV1().Namespaces().List(ctx, all)
	pods, err3 := a.CoreV1().Pods("").List(ctx, all)
	services, err4 := a.CoreV1().Services("").List(ctx, all)
	slices, err5 := a.DiscoveryV1().EndpointSlices("").List(ctx, all)
	deployments, err6 := a.AppsV1().Deployments("").List(ctx, all)
	for _, err := range []error{err1, err2, err3, err4, err5, err6} {
		if err != nil {
			a.t.Fatal(err)
		}
	}
	typed := func(version, kind string) metav1.TypeMeta {
		return metav1.TypeMeta{APIVersion: version, Kind: kind + "List"}
	}
	nodes.TypeMeta = typed("v1", "Node")
	namespaces.TypeMeta = typed("v1", "Namespace")
	pods.TypeMeta = typed("v1", "Pod")
	services.TypeMeta = typed("v1", "Service")
	slices.TypeMeta = typed("discovery.k8s.io/v1", "EndpointSlice")
	deployments.TypeMeta = typed("apps/v1", "Deployment")
	return []any{nodes, namespaces, pods, services, slices, deployments}
}
