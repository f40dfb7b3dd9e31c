package install

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"
)

// KubeletConfigs are the usual places of the kubelet's kubeconfig, for an agent that
// sees the node's files. To an agent's pod the manifest gives the first alone.
var KubeletConfigs = []string{
	"/etc/kubernetes/kubelet.conf",
	"/etc/kubernetes/kubeconfig",
	"/var/lib/kubelet/kubeconfig",
	"/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
	"/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
}

// answerTime is how long the API server's Service may take to answer.
const answerTime = 2 * time.Second

// Server is where the API server is asked, and how that was found.
type Server struct{ URL, Why string }

// FindServer finds the API server for a pod on the node's network: the given
// address; else the one that the node's kubelet uses, of which nothing but the
// address is taken; else the Service "kubernetes", where that answers, since the
// agent is what makes Services work. An error names all that was tried.
func FindServer(given string, kubeletConfigs []string) (Server, error) {
	if given != "" {
		u, err := url.Parse(given)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return Server{}, fmt.Errorf("API server %q: want https://HOST:PORT", given)
		}
		return Server{given, "the setting"}, nil
	}
	var tried []error
	for _, path := range kubeletConfigs {
		server, err := ServerOf(path)
		if err == nil {
			return Server{server, "the kubelet's " + path}, nil
		}
		tried = append(tried, err)
	}
	if len(tried) == 0 {
		tried = append(tried, errors.New("no kubeconfig of the kubelet is given"))
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" {
		return Server{}, fmt.Errorf("where is the API server? Set --api-server, or run in a pod: %w", errors.Join(tried...))
	}
	addr := net.JoinHostPort(host, port)
	c, err := net.DialTimeout("tcp", addr, answerTime)
	if err != nil {
		return Server{}, fmt.Errorf("where is the API server? Set --api-server (apiServer in the ConfigMap podlane-config): its Service does not answer: %w; %w",
			err, errors.Join(tried...))
	}
	_ = c.Close()
	return Server{"https://" + addr, "the Service kubernetes, which answers"}, nil
}

// ServerOf gives the server of a kubeconfig's current context.
func ServerOf(path string) (string, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, unix.EISDIR) { // the container runtime's, for want of a file to mount
		return "", fmt.Errorf("%s: the node has no such file", path)
	}
	if err != nil {
		return "", err
	}
	c, err := clientcmd.Load(text)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	context := c.Contexts[c.CurrentContext]
	if context == nil || c.Clusters[context.Cluster] == nil || !strings.HasPrefix(c.Clusters[context.Cluster].Server, "https://") {
		return "", fmt.Errorf("%s: no server in its current context", path)
	}
	return c.Clusters[context.Cluster].Server, nil
}
