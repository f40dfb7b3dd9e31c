// Command image builds podlane for each architecture and writes the container
// image as an OCI archive, with Go alone. It pushes nothing.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/podlane/podlane/internal/ociimage"
)

func main() {
	name := flag.String("name", "ghcr.io/podlane/podlane:devel", "the image's reference")
	version := flag.String("version", "devel", "what `podlane version` says")
	archs := flag.String("arch", "amd64,arm64", "architectures")
	out := flag.String("o", "bin/podlane-image.tar", "the archive")
	flag.Parse()
	if err := run(*name, *version, strings.Split(*archs, ","), *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(name, version string, archs []string, out string) error {
	image := ociimage.Image{Name: name, Labels: map[string]string{
		"org.opencontainers.image.title": "podlane", "org.opencontainers.image.version": version,
		"org.opencontainers.image.source": "https://github.com/podlane/podlane", "org.opencontainers.image.licenses": "Apache-2.0",
	}}
	for _, arch := range archs {
		program, err := build(version, arch)
		if err != nil {
			return err
		}
		image.Platforms = append(image.Platforms, ociimage.Platform{
			Arch: arch, Entrypoint: []string{"/podlane"},
			Files: []ociimage.File{{Path: "/podlane", Mode: 0o755, Data: program}},
		})
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	if err := ociimage.Write(f, image); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "image: %s: %s for %s, %.1f MB each, compressed\n", out, name, strings.Join(archs, " and "),
		float64(info.Size())/1e6/float64(len(archs)))
	return f.Close()
}

// build gives podlane for an architecture, with the CNI plugin of the same
// architecture inside. The plugin goes in by an overlay, so that the source tree
// stays as it is.
func build(version, arch string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "podlane-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	plugin, program := filepath.Join(dir, "podlane-cni"), filepath.Join(dir, "podlane")
	if err := compile(arch, "-ldflags", "-s -w", "-o", plugin, "github.com/podlane/podlane/cmd/podlane-cni"); err != nil {
		return nil, err
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/podlane/podlane").Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m: %w", err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	text := fmt.Sprintf(`{"Replace": {%q: %q}}`, filepath.Join(strings.TrimSpace(string(root)), "cni", "embedded", "podlane-cni"), plugin)
	if err := os.WriteFile(overlay, []byte(text), 0o644); err != nil {
		return nil, err
	}
	err = compile(arch, "-tags", "embedshim", "-overlay", overlay, "-ldflags", "-s -w -X main.version="+version, "-o", program,
		"github.com/podlane/podlane/cmd/podlane")
	if err != nil {
		return nil, err
	}
	return os.ReadFile(program)
}

func compile(arch string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-trimpath"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go build for %s: %w", arch, err)
	}
	return nil
}
