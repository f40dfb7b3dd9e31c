package kube

import (
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// scheme has the API groups that are followed. The clientset of
// client-go/kubernetes knows all of them, which costs tens of megabytes.
var (
	scheme = func() *runtime.Scheme {
		s := runtime.NewScheme()
		utilruntime.Must(corev1.AddToScheme(s))
		utilruntime.Must(discoveryv1.AddToScheme(s))
		utilruntime.Must(networkingv1.AddToScheme(s))
		return s
	}()
	codecs     = serializer.NewCodecFactory(scheme).WithoutConversion()
	parameters = runtime.NewParameterCodec(scheme)
)

// config reads a kubeconfig, or, where path is "", the service account of the
// pod.
func config(path string) (*rest.Config, error) {
	if path == "" {
		c, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("no kubeconfig was given, and this is no pod of a cluster (KUBERNETES_SERVICE_HOST is not set)")
		}
		if err != nil {
			return nil, fmt.Errorf("service account of this pod: %w", err)
		}
		return c, nil
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("kubeconfig: %w", err)
	}
	c, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		&clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	return c, nil
}

// clients make the connections to the API server: one for each group, which
// share a transport.
type clients map[schema.GroupVersion]rest.Interface

func newClients(c *rest.Config) (clients, error) {
	c = rest.CopyConfig(c)
	c.UserAgent = "podlane"
	c.ContentType = runtime.ContentTypeProtobuf
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	c.NegotiatedSerializer = codecs
	c.WarningHandler = rest.NoWarnings{}
	out := clients{}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion} {
		c.GroupVersion, c.APIPath = &gv, "/apis"
		if gv.Group == "" {
			c.APIPath = "/api"
		}
		client, err := rest.RESTClientFor(c)
		if err != nil {
			return nil, fmt.Errorf("kube-apiserver %s: %w", c.Host, err)
		}
		out[gv] = client
	}
	return out, nil
}
