package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/internal/podexec"
)

// The two API groups that are used: the clientset of all would be tens of megabytes.
var (
	scheme = func() *runtime.Scheme {
		s := runtime.NewScheme()
		utilruntime.Must(corev1.AddToScheme(s))
		utilruntime.Must(rbacv1.AddToScheme(s))
		metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
		return s
	}()
	parameters = runtime.NewParameterCodec(scheme)
)

// api is the API server.
type api struct {
	config *rest.Config
	core   rest.Interface
	rbac   rest.Interface
}

// connect reads a kubeconfig as kubectl does: the file given, KUBECONFIG, ~/.kube/config, or the pod's own account.
func connect(kubeconfig, contextName string) (*api, error) {
	klog.SetLogger(logr.Discard()) // client-go tells of every stream that is closed; what matters comes as an error too
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: contextName}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	c.UserAgent, c.WarningHandler, c.QPS, c.Burst = "podlane-perf", rest.NoWarnings{}, 50, 100
	a := &api{config: c}
	if a.core, err = restClient(c, corev1.SchemeGroupVersion, "/api"); err == nil {
		a.rbac, err = restClient(c, rbacv1.SchemeGroupVersion, "/apis")
	}
	return a, err
}

func restClient(c *rest.Config, gv schema.GroupVersion, path string) (rest.Interface, error) {
	c = rest.CopyConfig(c)
	c.GroupVersion, c.APIPath, c.NegotiatedSerializer = &gv, path, serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("kube-apiserver %s: %w", c.Host, err)
	}
	return client, nil
}

// plural is the resource of each kind we make.
var plural = map[string]string{
	"Namespace": "namespaces", "ServiceAccount": "serviceaccounts", "Pod": "pods", "Service": "services", "Role": "roles", "RoleBinding": "rolebindings",
}

// create makes one object, and leaves in it what the server made of it.
func (a *api) create(ctx context.Context, o runtime.Object) error {
	kind := o.GetObjectKind().GroupVersionKind()
	meta := o.(metav1.Object)
	client := a.core
	if kind.Group == rbacv1.GroupName {
		client = a.rbac
	}
	req := client.Post().Resource(plural[kind.Kind]).Body(o)
	if ns := meta.GetNamespace(); ns != "" {
		req = req.Namespace(ns)
	}
	if err := req.Do(ctx).Into(o); err != nil {
		return fmt.Errorf("make %s %s: %w", strings.ToLower(kind.Kind), meta.GetName(), plain(err))
	}
	return nil
}

// plain turns the API server's refusals into lines for people.
func plain(err error) error {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Errorf("no rights: %w", err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the API server does not know this user: %w", err)
	}
	return err
}

// version is that of the cluster, "" where it is not told.
func (a *api) version(ctx context.Context) string {
	text, err := a.core.Get().AbsPath("/version").Do(ctx).Raw()
	var info struct{ GitVersion string }
	if err != nil || json.Unmarshal(text, &info) != nil {
		return ""
	}
	return info.GitVersion
}

func (a *api) nodes(ctx context.Context) ([]corev1.Node, error) {
	list := &corev1.NodeList{}
	if err := a.core.Get().Resource("nodes").Do(ctx).Into(list); err != nil {
		return nil, fmt.Errorf("nodes: %w", plain(err))
	}
	return list.Items, nil
}

func (a *api) pods(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	list := &corev1.PodList{}
	if err := a.core.Get().Resource("pods").Namespace(namespace).Do(ctx).Into(list); err != nil {
		return nil, fmt.Errorf("pods of %s: %w", namespace, plain(err))
	}
	return list.Items, nil
}

func (a *api) service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	s := &corev1.Service{}
	err := a.core.Get().Resource("services").Namespace(namespace).Name(name).Do(ctx).Into(s)
	return s, err
}

// namespaces gives all that runs have made.
func (a *api) namespaces(ctx context.Context) ([]corev1.Namespace, error) {
	list := &corev1.NamespaceList{}
	options := metav1.ListOptions{LabelSelector: ManagedLabel + "=" + Manager}
	if err := a.core.Get().Resource("namespaces").VersionedParams(&options, parameters).Do(ctx).Into(list); err != nil {
		return nil, fmt.Errorf("namespaces: %w", plain(err))
	}
	return list.Items, nil
}

// deleteNamespace deletes one; that it is gone already is no error.
func (a *api) deleteNamespace(ctx context.Context, name string) error {
	err := a.core.Delete().Resource("namespaces").Name(name).Do(ctx).Error()
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", name, plain(err))
	}
	return nil
}

func (a *api) namespaceGone(ctx context.Context, name string) bool {
	return apierrors.IsNotFound(a.core.Get().Resource("namespaces").Name(name).Do(ctx).Error())
}

// stream opens exec or attach of a pod's container.
func (a *api) stream(namespace, pod, what string, options runtime.Object) (remotecommand.Executor, error) {
	return podexec.Open(a.config, a.core.Post().Resource("pods").Namespace(namespace).Name(pod).SubResource(what).VersionedParams(options, parameters).URL())
}

// exec runs a command in a pod.
func (a *api) exec(ctx context.Context, namespace, pod string, argv []string) ([]byte, error) {
	e, err := a.stream(namespace, pod, "exec", &corev1.PodExecOptions{Command: argv, Stdout: true, Stderr: true})
	if err != nil {
		return nil, err
	}
	out, said, err := podexec.Output(ctx, e, nil)
	if said != "" {
		err = errors.New(said)
	}
	return out, err
}

// attach holds a pod's standard input open until ctx ends.
func (a *api) attach(ctx context.Context, namespace, pod string, in io.Reader) error {
	e, err := a.stream(namespace, pod, "attach", &corev1.PodAttachOptions{Stdin: true})
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in})
}
