package kube

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/podlane/podlane/cluster/apiserver"
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

// dialTime is how long a server may take to accept a connection. A longer one would
// keep the next server waiting.
const dialTime = 5 * time.Second

// rest gives the configuration of a client, which asks another server where that is
// known and the first one does not answer.
func (o Options) rest() (*rest.Config, error) {
	c, err := config(o.Kubeconfig)
	if err != nil {
		return nil, err
	}
	if o.Server != "" {
		c.Host = o.Server
	}
	c.Dial = (&net.Dialer{Timeout: dialTime, KeepAlive: 30 * time.Second}).DialContext
	if o.Servers == nil {
		return c, nil
	}
	other := rest.CopyConfig(c)
	other.TLSClientConfig.ServerName = apiserver.Name
	others, err := rest.TransportFor(other)
	if err != nil {
		return nil, fmt.Errorf("kube-apiserver: %w", err)
	}
	c.WrapTransport = func(first http.RoundTripper) http.RoundTripper { return o.Servers.Transport(first, others) }
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
	shared, err := rest.HTTPClientFor(c)
	if err != nil {
		return nil, fmt.Errorf("kube-apiserver %s: %w", c.Host, err)
	}
	out := clients{}
	for _, gv := range []schema.GroupVersion{corev1.SchemeGroupVersion, discoveryv1.SchemeGroupVersion, networkingv1.SchemeGroupVersion} {
		c.GroupVersion, c.APIPath = &gv, "/apis"
		if gv.Group == "" {
			c.APIPath = "/api"
		}
		client, err := rest.RESTClientForConfigAndClient(c, shared)
		if err != nil {
			return nil, fmt.Errorf("kube-apiserver %s: %w", c.Host, err)
		}
		out[gv] = client
	}
	return out, nil
}

// connect makes the clients, and asks nothing of the server.
func (o Options) connect() (*rest.Config, clients, error) {
	c, err := o.rest()
	if err != nil {
		return nil, nil, err
	}
	all, err := newClients(c)
	return c, all, err
}

// core gives a client of the API's core group.
func (o Options) core() (rest.Interface, error) {
	_, all, err := o.connect()
	return all[corev1.SchemeGroupVersion], err
}
