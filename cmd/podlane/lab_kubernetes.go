package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// notWithKubernetes are the flags of `lab up` that a real Kubernetes does not have.
var notWithKubernetes = []string{"name", "overlay", "proxy-backend", "fast-path", "ip-family", "timeout", "file"}

// runKubernetes turns into the program that runs a real Kubernetes of so many nodes
// (test/e2e/cmd/up) until it is interrupted. That program and Kubernetes are built
// from the checkout's modules, which pin their versions: this binary has neither.
func runKubernetes(cmd *cobra.Command, nodes int) error {
	for _, name := range notWithKubernetes {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s: not with --kubernetes, which has nodes alone; the settings are those of deploy/podlane.yaml, and objects go in with kubectl", name)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("--kubernetes needs root, since containerd and kubelet do: sudo -E podlane lab up --kubernetes (podlane lab up without it needs none)")
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	module, err := upModule(here)
	if err != nil {
		return err
	}
	program, err := buildUp(cmd, module)
	if err != nil {
		return err
	}
	if err := os.Chdir(module); err != nil { // where it looks for the modules
		return err
	}
	return syscall.Exec(program, []string{"podlane-kubernetes", "-nodes", strconv.Itoa(nodes)}, os.Environ())
}

// upModule finds the module of the program in the checkout that a folder is in.
func upModule(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		text, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), "module github.com/podlane/podlane\n") {
			return filepath.Join(d, "test", "e2e"), nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("--kubernetes builds Kubernetes from the modules that Podlane's sources pin, and %s is not in a checkout of them: git clone https://github.com/podlane/podlane && cd podlane", dir)
		}
	}
}

// buildUp builds the program; the file is kept in the user's cache.
func buildUp(cmd *cobra.Command, module string) (string, error) {
	if _, err := exec.LookPath("go"); err != nil {
		return "", fmt.Errorf("--kubernetes needs Go, with which it builds Kubernetes: https://go.dev/dl/ (%w; sudo often drops PATH: sudo env PATH=$PATH podlane lab up --kubernetes)", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	program := filepath.Join(cache, "podlane", "up")
	fmt.Fprintln(cmd.ErrOrStderr(), "podlane: building the program that runs Kubernetes; the first time, Kubernetes follows, which takes 10 to 20 minutes")
	build := exec.CommandContext(cmd.Context(), "go", "build", "-o", program, "./cmd/up")
	build.Dir = module
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	build.Stdout, build.Stderr = cmd.ErrOrStderr(), cmd.ErrOrStderr()
	if err := build.Run(); err != nil {
		return "", fmt.Errorf("go build ./cmd/up in %s: %w", module, err)
	}
	return program, nil
}
