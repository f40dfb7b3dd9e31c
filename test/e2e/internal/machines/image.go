package machines

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/podlane/podlane/internal/ociimage"
)

// PodImage is the image of all pods of the tests, and of their sandboxes.
const PodImage = "podlane.test/pod:e2e"

// PodlaneImage is the image that deploy/podlane.yaml names in the tests.
const PodlaneImage = "ghcr.io/podlane/podlane:e2e"

// BuildImages writes the archives of both images into a folder. It must be called
// where modules can be downloaded: before Enter, or in a program of its own.
func BuildImages(ctx context.Context, dir string) error {
	program := filepath.Join(dir, "pod")
	if err := goRun(ctx, ".", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/podlane/podlane/test/e2e/cmd/pod"); err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "pod.tar"))
	if err != nil {
		return err
	}
	defer f.Close()
	err = ociimage.Write(f, ociimage.Image{Name: PodImage, Platforms: []ociimage.Platform{{
		Arch: runtime.GOARCH, Entrypoint: []string{"/pod", "pause"}, Files: []ociimage.File{{Path: "/pod", Mode: 0o755, Data: data}},
	}}})
	if err != nil {
		return err
	}
	// For whoever asks from outside of the nodes.
	if err := goRun(ctx, "../..", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "podlane"), "./cmd/podlane"); err != nil {
		return err
	}
	return goRun(ctx, "../..", "run", "github.com/podlane/podlane/internal/ociimage/cmd/image", "-arch", runtime.GOARCH,
		"-name", PodlaneImage, "-version", "e2e", "-o", filepath.Join(dir, "podlane.tar"))
}

// CoreDNSImage is that of the DNS server that Podlane's takes over from.
const CoreDNSImage = "podlane.test/coredns:e2e"

// PrepareDNS adds what that takes to what Prepare made: an image of the CoreDNS that
// test/dns compares with, and the program podlane. In the namespaces it does
// nothing.
func PrepareDNS(ctx context.Context) error {
	if os.Getenv(role) != "" {
		return nil
	}
	dir := os.Getenv(workFolder)
	program := filepath.Join(dir, "coredns")
	err := errors.Join(goRun(ctx, "../..", "build", "-trimpath", "-o", filepath.Join(dir, "podlane"), "./cmd/podlane"),
		goRun(ctx, "../dns", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/coredns/coredns"))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "coredns.tar"))
	if err != nil {
		return err
	}
	defer f.Close()
	return ociimage.Write(f, ociimage.Image{Name: CoreDNSImage, Platforms: []ociimage.Platform{{
		Arch: runtime.GOARCH, Entrypoint: []string{"/coredns"}, Files: []ociimage.File{{Path: "/coredns", Mode: 0o755, Data: data}},
	}}})
}

// moduleDir is the folder of the module of these tests.
func moduleDir(ctx context.Context) (string, error) {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("go env GOMOD: %w", err)
	}
	return filepath.Dir(strings.TrimSpace(string(mod))), nil
}

// goRun runs go in a folder relative to this module's.
func goRun(ctx context.Context, dir string, args ...string) error {
	e2e, err := moduleDir(ctx)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = filepath.Join(e2e, dir)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return nil
}
