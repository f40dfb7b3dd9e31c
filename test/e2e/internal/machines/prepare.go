package machines

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// Variables by which the part outside of the namespaces tells the one inside what
// it has prepared.
const (
	binFolder  = "PODLANE_E2E_BIN"
	workFolder = "PODLANE_E2E_DIR"
)

// needed are the programs of the machine, and Debian's packages that have them.
var needed = map[string]string{
	"containerd": "containerd", "ctr": "containerd", "runc": "runc", "ip": "iproute2", "nsenter": "util-linux", "nft": "nftables", "curl": "curl",
}

// Prepare does what needs the machine's own network: it installs containerd and
// runc where they are missing, has the programs of Kubernetes built, and builds
// the images. In the namespaces it does nothing. build gives the folder with the
// programs.
func Prepare(ctx context.Context, w io.Writer, build func(context.Context) (string, error)) error {
	if os.Getenv(role) != "" {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("a real Kubernetes needs root: containerd and kubelet do")
	}
	if err := packages(ctx, w); err != nil {
		return err
	}
	bin, err := build(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "podlane-e2e-")
	if err != nil {
		return err
	}
	fmt.Fprintln(w, "e2e: building the images, into", dir)
	if err := BuildImages(ctx, dir); err != nil {
		return err
	}
	if err := writeManifests(ctx, dir); err != nil {
		return err
	}
	return errors.Join(os.Setenv(binFolder, bin), os.Setenv(workFolder, dir))
}

func packages(ctx context.Context, w io.Writer) error {
	missing := map[string]bool{}
	for program, pkg := range needed {
		if _, err := exec.LookPath(program); err != nil {
			missing[pkg] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	args := []string{"install", "-y", "-qq", "--no-install-recommends"}
	for pkg := range missing {
		args = append(args, pkg)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install these first, there is no apt-get here: %s", strings.Join(args[4:], " "))
	}
	fmt.Fprintln(w, "e2e: installing", strings.Join(args[4:], " "))
	if _, err := sh(ctx, "apt-get", "update", "-qq"); err != nil {
		return err
	}
	_, err := sh(ctx, "env", append([]string{"DEBIAN_FRONTEND=noninteractive", "apt-get"}, args...)...)
	return err
}

// Prepared gives Options for what Prepare made.
func Prepared(nodes int, log io.Writer) Options {
	dir := os.Getenv(workFolder)
	images, _ := filepath.Glob(filepath.Join(dir, "*.tar")) // the pattern is well formed
	return Options{Bin: os.Getenv(binFolder), Dir: dir, Nodes: nodes, Log: log, Images: images}
}

// removePrepared removes what Prepare made, once nobody uses it.
func removePrepared() {
	if dir := os.Getenv(workFolder); dir != "" {
		_ = os.RemoveAll(dir)
	}
}

// imageLine is the line of a manifest that names Podlane's image.
var imageLine = regexp.MustCompile(`image: ghcr.io/podlane/podlane:\S+`)

// writeManifests copies deploy/ into the folder, with the tests' image.
func writeManifests(ctx context.Context, dir string) error {
	e2e, err := moduleDir(ctx)
	if err != nil {
		return err
	}
	for _, name := range []string{Manifest, UninstallManifest} {
		text, err := os.ReadFile(filepath.Join(e2e, "..", "..", "deploy", name))
		if err != nil {
			return err
		}
		text = imageLine.ReplaceAll(text, []byte("image: "+PodlaneImage))
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}
