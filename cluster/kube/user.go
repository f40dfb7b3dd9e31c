package kube

import (
	"context"
	"fmt"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/podlane/podlane/cluster"
)

// User reaches a cluster as kubectl does, with the rights of the one who asks: for
// looking once, not for following.
type User struct {
	config  *rest.Config
	clients clients
	// Name says which cluster it is: its context in the kubeconfig.
	Name string
}

// HasKubeconfig says whether kubectl would find a cluster here: by KUBECONFIG or in
// ~/.kube/config.
func HasKubeconfig() bool {
	c, err := clientcmd.NewDefaultClientConfigLoadingRules().Load()
	return err == nil && len(c.Clusters) > 0
}

// NewUser reads a kubeconfig as kubectl does: the file, or with "" KUBECONFIG and
// ~/.kube/config. It asks nothing of the server.
func NewUser(kubeconfig string) (*User, error) {
	klog.SetLogger(logr.Discard()) // client-go tells of every stream that closes; what matters comes as an error too
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loaded := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil)
	c, err := loaded.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	c.QPS, c.Burst = 50, 100
	u := &User{config: c, Name: "the cluster"}
	if raw, err := loaded.RawConfig(); err == nil && raw.CurrentContext != "" {
		u.Name = raw.CurrentContext
	}
	u.clients, err = newClients(c)
	return u, err
}

// Snapshot lists what an agent follows, of all nodes, once.
func (u *User) Snapshot(ctx context.Context) (*cluster.Snapshot, error) {
	b := cluster.NewBuilder()
	for _, k := range kindsOf(ForAgent, "") {
		// Version 0 is what the server has in its memory: no read of etcd.
		options := metav1.ListOptions{ResourceVersion: "0"}
		k.selectors(&options)
		list, err := u.clients[k.group].Get().Resource(k.resource).VersionedParams(&options, parameters).Do(ctx).Get()
		if k.optional && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err)) {
			continue
		}
		if err != nil {
			return nil, u.plain("list "+k.resource, err)
		}
		err = meta.EachListItem(list, func(o runtime.Object) error {
			if c := k.convert(o); c != nil {
				c.set(b)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", k.resource, err)
		}
	}
	return b.Publish(), nil
}

// plain makes one line for people of what the API server refuses.
func (u *User) plain(what string, err error) error {
	switch {
	// What refuses to upgrade a connection for exec says why in its text alone.
	case apierrors.IsForbidden(err), strings.Contains(err.Error(), "is forbidden: User"):
		return fmt.Errorf("%s: this user of %s has no right to: %w", what, u.Name, err)
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%s: %s does not know this user: %w", what, u.Name, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Place is a container of a pod.
type Place struct {
	Namespace, Pod, Container, Image string
	HostNetwork                      bool
}

// Agents gives the agents' containers, by node: those that run.
func (u *User) Agents(ctx context.Context) (map[string]Place, error) {
	list := &corev1.PodList{}
	options := metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=podlane,app.kubernetes.io/component=agent"}
	if err := u.core().Get().Resource("pods").VersionedParams(&options, parameters).Do(ctx).Into(list); err != nil {
		return nil, u.plain("list the agents' pods", err)
	}
	agents := map[string]Place{}
	for _, p := range list.Items {
		for _, c := range p.Spec.Containers {
			if c.Name == "agent" && p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
				agents[p.Spec.NodeName] = Place{p.Namespace, p.Name, c.Name, c.Image, true}
			}
		}
	}
	return agents, nil
}

func (u *User) core() rest.Interface { return u.clients[corev1.SchemeGroupVersion] }
