package machines

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The addresses of the cluster. The control plane is on a machine of its own, which
// is also the world outside the cluster: it has no route to pods.
const (
	outside4, outside6 = "192.168.77.1", "fd77::1"
	server             = "https://" + outside4 + ":6443"
	podCIDRs           = "10.244.0.0/16,fd00:244::/48"
	serviceCIDRs       = "10.96.0.0/16,fd00:96::/112"
	// DNS is the address that kubelets tell pods to ask.
	DNS = "10.96.0.10"
)

// user is one of the API server's, whose token is its short name.
type user struct{ token, name, groups string }

var users = []user{
	{"admin", "admin", "system:masters"},
	{"controllers", "system:kube-controller-manager", ""},
	{"scheduler", "system:kube-scheduler", ""},
}

// plane is the control plane.
type plane struct {
	bin, dir  string
	authority *authority
	etcd, api *Process
}

func startPlane(ctx context.Context, bin, dir string, nodes []string) (*plane, error) {
	p := &plane{bin: bin, dir: dir}
	if err := p.secrets(nodes); err != nil {
		return nil, err
	}
	if err := p.startEtcd(ctx); err != nil {
		return nil, err
	}
	if err := p.startAPI(ctx); err != nil {
		return nil, err
	}
	_, err1 := p.run("kube-controller-manager", "--kubeconfig", p.path("controllers.kubeconfig"), "--allocate-node-cidrs",
		"--cluster-cidr", podCIDRs, "--service-cluster-ip-range", serviceCIDRs, "--root-ca-file", p.path("ca.crt"),
		"--service-account-private-key-file", p.path("accounts.key"), "--use-service-account-credentials",
		"--leader-elect=false", "--node-monitor-grace-period", "20s", "--bind-address", "127.0.0.1")
	_, err2 := p.run("kube-scheduler", "--kubeconfig", p.path("scheduler.kubeconfig"), "--leader-elect=false", "--bind-address", "127.0.0.1")
	return p, errors.Join(err1, err2)
}

func (p *plane) path(name string) string { return filepath.Join(p.dir, name) }

func (p *plane) run(program string, args ...string) (*Process, error) {
	return start(p.dir, program, append([]string{filepath.Join(p.bin, program)}, args...))
}

// secrets writes certificates, tokens and kubeconfigs.
func (p *plane) secrets(nodes []string) (err error) {
	if p.authority, err = newAuthority(p.dir); err != nil {
		return err
	}
	addrs := []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(outside4), net.ParseIP(outside6), net.ParseIP("10.96.0.1"), net.ParseIP("fd00:96::1")}
	err = errors.Join(
		p.authority.sign("server", template("kube-apiserver"), addrs, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"),
		p.authority.sign("accounts", template("accounts"), nil),
		p.authority.sign("to-kubelet", template("kube-apiserver", "system:masters"), nil))
	all := users
	for _, n := range nodes {
		all = append(all, user{"kubelet-" + n, "system:node:" + n, "system:nodes"})
	}
	var tokens strings.Builder
	for i, u := range all {
		fmt.Fprintf(&tokens, "%s,%s,%d,%s\n", u.token, u.name, i, u.groups)
		err = errors.Join(err, os.WriteFile(p.path(u.token+".kubeconfig"), p.kubeconfig(u.token), 0o600))
	}
	return errors.Join(err, os.WriteFile(p.path("tokens"), []byte(tokens.String()), 0o600))
}

func (p *plane) kubeconfig(token string) []byte {
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: e2e
contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}]
clusters: [{name: e2e, cluster: {server: %q, certificate-authority-data: %s}}]
users: [{name: e2e, user: {token: %s}}]
`, server, base64.StdEncoding.EncodeToString(p.authority.pem), token)
}

func (p *plane) startEtcd(ctx context.Context) (err error) {
	const url, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
	p.etcd, err = p.run("etcd", "--data-dir", p.path("etcd"), "--name", "e2e", "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "e2e="+peer)
	if err != nil {
		return err
	}
	return p.etcd.await(ctx, func(ctx context.Context) error { return get(ctx, http.DefaultClient, url+"/health", "") })
}

func (p *plane) startAPI(ctx context.Context) (err error) {
	p.api, err = p.run("kube-apiserver", "--etcd-servers", "http://127.0.0.1:2379", "--advertise-address", outside4, "--secure-port", "6443",
		"--tls-cert-file", p.path("server.crt"), "--tls-private-key-file", p.path("server.key"), "--client-ca-file", p.path("ca.crt"),
		"--kubelet-client-certificate", p.path("to-kubelet.crt"), "--kubelet-client-key", p.path("to-kubelet.key"),
		"--kubelet-preferred-address-types", "InternalIP",
		"--service-account-key-file", p.path("accounts.pub"), "--service-account-signing-key-file", p.path("accounts.key"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local", "--token-auth-file", p.path("tokens"),
		"--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction", "--allow-privileged",
		"--service-cluster-ip-range", serviceCIDRs, "--shutdown-delay-duration", "0s")
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(p.authority.cert)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	return p.api.await(ctx, func(ctx context.Context) error { return get(ctx, client, server+"/readyz", "admin") })
}
