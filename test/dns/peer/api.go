package peer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const admin = "admin" // the token of a user who may do everything

// API is a running kube-apiserver with its etcd, on loopback.
type API struct {
	Kubeconfig string // path of a file
	url        string
	client     *http.Client
	processes  []*Process
}

// StartAPI starts etcd and kube-apiserver of Programs, on free ports, with their
// files in dir. More arguments of kube-apiserver count more than these.
func StartAPI(ctx context.Context, p Programs, dir string, more ...string) (*API, error) {
	etcd, peers, addr := FreeAddr(), FreeAddr(), FreeAddr()
	a := &API{Kubeconfig: filepath.Join(dir, "kubeconfig"), url: "https://" + addr, client: &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 64}}}
	if err := writeKeys(dir, a.url); err != nil {
		return nil, err
	}
	e, err := Start(p.Etcd, dir, "--data-dir", "etcd", "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", "http://"+etcd, "--advertise-client-urls", "http://"+etcd, "--listen-peer-urls", "http://"+peers,
		"--initial-advertise-peer-urls", "http://"+peers, "--initial-cluster", "default=http://"+peers)
	if err != nil {
		return nil, err
	}
	a.processes = append(a.processes, e)
	host, port, _ := splitAddr(addr)
	args := []string{"--etcd-servers", "http://" + etcd, "--bind-address", host, "--secure-port", port,
		"--cert-dir", "certs", "--service-account-key-file", "sa.pem", "--service-account-signing-key-file", "sa.pem",
		"--service-account-issuer", "https://podlane.test", "--token-auth-file", "tokens", "--authorization-mode", "RBAC",
		"--disable-admission-plugins", "ServiceAccount", "--service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112", "--shutdown-delay-duration", "0s"}
	s, err := Start(p.APIServer, dir, append(args, more...)...)
	if err != nil {
		a.Stop()
		return nil, err
	}
	a.processes = append(a.processes, s)
	if err := a.await(ctx, s); err != nil {
		a.Stop()
		return nil, err
	}
	return a, nil
}

// Stop kills both programs.
func (a *API) Stop() {
	for _, p := range a.processes {
		p.Kill()
	}
}

func writeKeys(dir, url string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	files := map[string]string{
		"sa.pem": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
		"tokens": admin + "," + admin + ",1,system:masters\n",
		"kubeconfig": fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
clusters: [{name: c, cluster: {server: "%s", insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: %s}}]}`, url, admin),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// await waits until the server is ready and has made what it makes itself.
func (a *API) await(ctx context.Context, s *Process) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for _, path := range []string{"/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/default/services/kubernetes"} {
		for {
			err := a.Do(ctx, http.MethodGet, path, nil)
			if err == nil {
				break
			}
			select {
			case <-s.Ended:
				return fmt.Errorf("kube-apiserver ended: %s", s.Log())
			case <-ctx.Done():
				return fmt.Errorf("kube-apiserver: %w: %s", err, s.Log())
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// Do sends a request with an object as its body.
func (a *API) Do(ctx context.Context, method, path string, object any) error {
	_, err := a.send(ctx, method, path, object)
	return err
}

// Ask is Do that gives the object that is answered.
func (a *API) Ask(ctx context.Context, method, path string, object any) (out map[string]any, err error) {
	text, err := a.send(ctx, method, path, object)
	if err != nil {
		return nil, err
	}
	return out, json.Unmarshal(text, &out)
}

func (a *API) send(ctx context.Context, method, path string, object any) ([]byte, error) {
	body, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+admin)
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %s: %.500s", method, path, resp.Status, text)
	}
	return text, err
}

// Create makes objects, many at a time; namespaces come first.
func (a *API) Create(ctx context.Context, o *Objects) error {
	for _, batch := range [][]request{o.namespaces, o.rest, o.status} {
		if err := a.all(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (a *API) all(ctx context.Context, batch []request) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan request)
	var done sync.WaitGroup
	for range 32 {
		done.Go(func() {
			for r := range work {
				if err := a.Do(ctx, r.method, r.path, r.object); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, r := range batch {
		if ctx.Err() != nil {
			break
		}
		work <- r
	}
	close(work)
	done.Wait()
	return context.Cause(ctx)
}
