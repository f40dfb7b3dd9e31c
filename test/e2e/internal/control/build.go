// Package control builds and runs a real control plane on loopback: etcd and
// kube-apiserver, from the versions that the module components names. It starts no
// controller and no node.
package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// version is that of k8s.io/kubernetes in components/go.mod. The programs refuse to run
// without one.
const version = "v1.36.3"

// packages are the programs that can be built; components/go.mod names each as a tool.
var packages = map[string]string{
	"etcd":                    "go.etcd.io/etcd/server/v3",
	"kube-apiserver":          "k8s.io/kubernetes/cmd/kube-apiserver",
	"kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
	"kube-scheduler":          "k8s.io/kubernetes/cmd/kube-scheduler",
	"kubectl":                 "k8s.io/kubernetes/cmd/kubectl",
	"kubelet":                 "k8s.io/kubernetes/cmd/kubelet",
}

// All gives the names of all programs that can be built.
func All() []string { return slices.Sorted(maps.Keys(packages)) }

// Build gives the folder with the programs, and builds those that are not there
// yet: minutes, the first time. Progress goes to w. The folder is in the user's
// cache and named after go.mod and go.sum, so that each version is built once.
func Build(ctx context.Context, w io.Writer, programs ...string) (string, error) {
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	dir, err := cacheDir(module)
	if err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(dir, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	for _, p := range programs {
		if packages[p] == "" {
			return "", fmt.Errorf("%s: no such program", p)
		}
		if _, err := os.Stat(filepath.Join(dir, p)); err == nil {
			continue
		}
		if err := build(ctx, w, module, dir, p); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// moduleDir is the folder of the module components.
func moduleDir() (string, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Join(filepath.Dir(strings.TrimSpace(string(out))), "components"), nil
}

func cacheDir(module string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	dir := filepath.Join(cache, "podlane", fmt.Sprintf("k8s-%x", sum.Sum(nil)[:6]))
	return dir, os.MkdirAll(dir, 0o755)
}

// lock keeps two test programs from building at once.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return f.Close, nil
}

func build(ctx context.Context, w io.Writer, module, dir, program string) error {
	start := time.Now()
	say := func(text string) {
		fmt.Fprintf(w, "e2e: %s: %s (%s)\n", program, text, time.Since(start).Round(time.Second))
	}
	minor := strings.Split(version, ".")[1]
	flags := fmt.Sprintf("-s -w -X k8s.io/component-base/version.gitVersion=%s -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=%s", version, minor)
	temporary := filepath.Join(dir, "."+program)
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", "go", "build", "-trimpath", "-ldflags", flags, "-o", temporary, packages[program])
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	say("building into " + dir)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("build %s: %w", program, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for tick := time.NewTicker(20 * time.Second); ; {
		select {
		case <-tick.C:
			say("still building")
			continue
		case err := <-done:
			tick.Stop()
			if err != nil {
				return fmt.Errorf("build %s: %w\n%s", program, err, out.Bytes())
			}
		}
		say("built")
		return os.Rename(temporary, filepath.Join(dir, program))
	}
}
