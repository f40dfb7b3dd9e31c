// Package peer starts what Podlane's DNS is compared with, and Podlane's DNS
// itself, each as the program that people run: CoreDNS, kube-apiserver and etcd.
// It has no opinion on what is right.
package peer

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Programs are paths of files to run.
type Programs struct{ Podlane, CoreDNS, Etcd, APIServer string }

// Build builds into dir the programs that p does not name already, but for etcd
// and kube-apiserver, which the module test/e2e keeps in the user's cache.
func (p Programs) Build(ctx context.Context, dir string) (Programs, error) {
	root, err := moduleDir()
	if err != nil {
		return p, err
	}
	for _, b := range []struct {
		dir, name, pkg string
		out            *string
	}{
		{filepath.Join(root, "../.."), "podlane", "./cmd/podlane", &p.Podlane},
		{root, "coredns", "github.com/coredns/coredns", &p.CoreDNS},
	} {
		if *b.out != "" {
			continue
		}
		*b.out = filepath.Join(dir, b.name)
		if _, err := goRun(ctx, b.dir, "build", "-trimpath", "-ldflags", "-s -w", "-o", *b.out, b.pkg); err != nil {
			return p, err
		}
	}
	cache, err := goRun(ctx, filepath.Join(root, "../e2e"), "run", "./cmd/build", "etcd", "kube-apiserver")
	if err != nil {
		return p, err
	}
	cache = strings.TrimSpace(cache)
	p.Etcd, p.APIServer = filepath.Join(cache, "etcd"), filepath.Join(cache, "kube-apiserver")
	return p, nil
}

func moduleDir() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out))), nil
}

func goRun(ctx context.Context, dir string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, errs.Bytes())
	}
	return string(out), nil
}

// Process is a program that runs. It ends at the latest with the thread that
// started it.
type Process struct {
	Cmd   *exec.Cmd
	Ended chan struct{}
	log   *lockedBuffer
}

// Start starts a program in a folder.
func Start(program, dir string, args ...string) (*Process, error) {
	p := &Process{Cmd: exec.Command(program, args...), Ended: make(chan struct{}), log: &lockedBuffer{}}
	p.Cmd.Dir, p.Cmd.Stdout, p.Cmd.Stderr = dir, p.log, p.log
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", program, err)
	}
	go func() {
		_ = p.Cmd.Wait() // how it ended is in its log
		close(p.Ended)
	}()
	return p, nil
}

// Kill ends the program.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill()
	<-p.Ended
}

// Log gives the end of what the program wrote.
func (p *Process) Log() string {
	text := p.log.String()
	return text[max(0, len(text)-3000):]
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// FreeAddr gives a loopback address that nobody listens at, over UDP and TCP.
func FreeAddr() string {
	for {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			continue
		}
		addr := l.Addr().String()
		c, err := net.ListenPacket("udp4", addr)
		_ = l.Close()
		if err == nil {
			_ = c.Close()
			return addr
		}
	}
}

func splitAddr(addr string) (host, port string, err error) { return net.SplitHostPort(addr) }
