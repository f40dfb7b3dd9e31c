package control

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Programs are what Start needs.
var Programs = []string{"etcd", "kube-apiserver"}

// The users of the API server, whose names are their tokens.
const (
	Admin  = "admin"  // may do everything
	Nobody = "nobody" // may do nothing
)

// start is how long a program may take until it answers, on a busy machine.
const start = 3 * time.Minute

// Plane is a running control plane. It ends with its test, or when the test
// program dies.
type Plane struct {
	t         testing.TB
	bin, dir  string
	authority []byte
	etcd, api *process
	EtcdURL   string
	Addr      string // of the API server: 127.0.0.1:PORT
}

// Start starts etcd and a kube-apiserver with programs from bin, on free ports.
func Start(t testing.TB, bin string) *Plane {
	t.Helper()
	p := &Plane{t: t, bin: bin, dir: t.TempDir(), Addr: freeAddr(t), EtcdURL: "http://" + freeAddr(t)}
	var err error
	if p.authority, err = writeCerts(p.dir); err != nil {
		t.Fatal(err)
	}
	tokens := fmt.Sprintf("%s,%s,1,system:masters\n%s,%s,2,\n", Admin, Admin, Nobody, Nobody)
	if err := os.WriteFile(p.path("tokens"), []byte(tokens), 0o600); err != nil {
		t.Fatal(err)
	}
	peer := "http://" + freeAddr(t)
	p.etcd = p.run("etcd", "--data-dir", p.path("etcd"), "--name", "e2e", "--log-level", "error", "--unsafe-no-fsync",
		"--listen-client-urls", p.EtcdURL, "--advertise-client-urls", p.EtcdURL,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "e2e="+peer)
	p.await(p.etcd, http.DefaultClient, p.EtcdURL+"/health", "")
	p.StartAPI()
	t.Cleanup(func() {
		p.KillAPI()
		p.etcd.kill()
	})
	return p
}

// StartAPI starts the API server (again), on the same address.
func (p *Plane) StartAPI() {
	p.t.Helper()
	host, port, err := net.SplitHostPort(p.Addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.api = p.run("kube-apiserver", "--etcd-servers", p.EtcdURL, "--bind-address", host, "--secure-port", port,
		"--tls-cert-file", p.path("server.crt"), "--tls-private-key-file", p.path("server.key"),
		"--service-account-key-file", p.path("sa.pub"), "--service-account-signing-key-file", p.path("server.key"),
		"--service-account-issuer", "https://podlane.test", "--token-auth-file", p.path("tokens"),
		"--authorization-mode", "RBAC", "--disable-admission-plugins", "ServiceAccount",
		"--service-cluster-ip-range", "10.96.0.0/16,fd00:96::/112", "--shutdown-delay-duration", "0s",
		// Objects stored before 1.36 may have addresses with leading zeros.
		"--feature-gates", "StrictIPCIDRValidation=false")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.authority)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true}}
	p.await(p.api, client, "https://"+p.Addr+"/readyz", Admin)
}

// KillAPI kills the API server without warning.
func (p *Plane) KillAPI() { p.api.kill() }

// Kubeconfig writes a kubeconfig for a user and gives its path. addr is where the
// server is reached: Addr, or a Gate's.
func (p *Plane) Kubeconfig(user, addr string) string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: e2e, contexts: [{name: e2e, context: {cluster: e2e, user: e2e}}],
clusters: [{name: e2e, cluster: {server: "https://%s", certificate-authority-data: %s}}], users: [{name: e2e, user: {token: %s}}]}`,
		addr, base64.StdEncoding.EncodeToString(p.authority), user)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *Plane) path(name string) string { return filepath.Join(p.dir, name) }

// process is a program that runs.
type process struct {
	name, log string
	cmd       *exec.Cmd
	ended     chan struct{}
}

func (p *Plane) run(program string, args ...string) *process {
	p.t.Helper()
	log := p.path(fmt.Sprintf("%s-%d.log", program, time.Now().UnixNano()))
	f, err := os.Create(log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(filepath.Join(p.bin, program), args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("%s: %v", program, err)
	}
	pr := &process{name: program, log: log, cmd: cmd, ended: make(chan struct{})}
	go pr.wait()
	return pr
}

// wait reaps the program; how it ended is in its log.
func (pr *process) wait() {
	pr.cmd.Wait()
	close(pr.ended)
}

func (pr *process) kill() {
	pr.cmd.Process.Kill()
	<-pr.ended
}

// await waits until a URL answers 200.
func (p *Plane) await(pr *process, client *http.Client, url, token string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), start)
	defer cancel()
	err := errors.New("not asked")
	for ctx.Err() == nil {
		select {
		case <-pr.ended:
			p.t.Fatalf("%s ended: %s", pr.name, tail(pr.log))
		case <-time.After(100 * time.Millisecond):
		}
		if err = get(ctx, client, url, token); err == nil {
			return
		}
	}
	p.t.Fatalf("%s does not answer: %v: %s", pr.name, err, tail(pr.log))
}

func get(ctx context.Context, client *http.Client, url, token string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return err
}

func tail(path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return []byte(err.Error())
	}
	return data[max(0, len(data)-3000):]
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
